"""Rows of image and caption: how they are stored, read back, decoded and batched. numpy only."""
