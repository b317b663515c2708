"""Where rows come from: tars, tables beside their pictures, Hugging Face sets and TFDS sets.

Each gives shards: frozen dataclasses that can be pickled, compared and called, and then yield the
records of one file or of a stretch of one, always the same ones in the same order.
"""
