"""Reads a data set for training: plans the order of the rows, decodes and batches them."""
