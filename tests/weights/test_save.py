"""Modules into safetensors."""

import os

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file

from pea_jax.runtime import parallel
from pea_jax.runtime.storage import replace_bytes
from pea_jax.weights.load import load_module
from pea_jax.weights.save import save_module, tensors_of
from tests.models.random_module import random_module


class _Layers(nnx.Module):
    def __init__(self):
        self.fc = nnx.Linear(8, 16, rngs=nnx.Rngs(0))
        self.conv = nnx.Conv(3, 5, (2, 4), rngs=nnx.Rngs(0))


def test_names_and_layout_are_those_of_pytorch(tmp_path):
    module = random_module(_Layers)
    save_module(module, tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    shapes = {key: value.shape for key, value in tensors.items()}
    assert shapes == {
        "fc.weight": (16, 8),
        "fc.bias": (16,),
        "conv.weight": (5, 3, 2, 4),
        "conv.bias": (5,),
    }
    np.testing.assert_array_equal(tensors["fc.weight"], np.asarray(module.fc.kernel[...]).T)
    np.testing.assert_array_equal(
        tensors["conv.weight"], np.asarray(module.conv.kernel[...]).transpose(3, 2, 0, 1)
    )


def test_metadata_and_other_names(tmp_path):
    file = tmp_path / "model.safetensors"
    save_module(random_module(_Layers), file, renamed=[(r"^fc\.", "linear."), ("linear", "l")])
    with safe_open(file, framework="np") as handle:
        assert handle.metadata() == {"format": "pt"}
        assert set(handle.keys()) == {"l.weight", "l.bias", "conv.weight", "conv.bias"}


def test_dtype():
    tensors = tensors_of(random_module(_Layers), dtype=jnp.float16)
    assert {value.dtype for value in tensors.values()} == {np.dtype(np.float16)}


def test_a_module_that_is_spread_over_devices_is_saved_whole(tmp_path):
    module = random_module(_Layers)
    save_module(module, tmp_path / "one.safetensors")
    rule = parallel.parameter_sharding(parallel.make_mesh(2, 4), min_size=8)
    spread = load_module(_Layers, tmp_path / "one.safetensors", sharding=rule)
    assert not spread.fc.kernel[...].sharding.is_fully_replicated
    save_module(spread, tmp_path / "two.safetensors")
    one, two = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_what_is_not_a_parameter_is_refused(tmp_path):
    class Counting(nnx.Module):
        def __init__(self):
            self.count = nnx.BatchStat(jnp.zeros(()))

    with pytest.raises(ValueError, match="count is a BatchStat"):
        save_module(Counting(), tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"old")

    def fail(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        replace_bytes(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
