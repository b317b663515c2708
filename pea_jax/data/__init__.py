"""Data sets of captioned images: building, reading, decoding and batching. Uses numpy, not jax."""
