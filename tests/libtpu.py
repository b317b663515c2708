"""The mark of tests that ask the TPU compiler, which there is for Linux on x86 alone."""

import importlib.util

import pytest

HERE = importlib.util.find_spec("libtpu") is not None

needs_libtpu = pytest.mark.skipif(
    not HERE, reason="the TPU compiler isn't installed: pip install 'pea-jax[tpu]'"
)
