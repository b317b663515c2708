"""Writes a data set: records of an origin become rows, and rows become ArrayRecord files."""
