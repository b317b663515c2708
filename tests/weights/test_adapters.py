"""Saved adapters."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import pea_jax
from pea_jax.models.adapter import Adapter, AdapterConfig
from pea_jax.weights.adapters import check_fit, load_adapter, read_adapter_config, save_adapter
from pea_jax.weights.load import WeightsError
from tests.models.random_module import random_module
from tests.weights.test_load import assert_same

METADATA = {"base_model": "tinyworld/sd", "language_encoder": "tinyworld/xlm-roberta", "step": 30}
SD = AdapterConfig(input_width=6, hidden_width=10, output_width=8)
SDXL = AdapterConfig(6, 10, output_width=8, projector_layers=4, pooled_width=12)


def adapter_of(config: AdapterConfig, seed: int = 0, param_dtype=jnp.float32) -> Adapter:
    build = lambda: Adapter(config, rngs=nnx.Rngs(0), param_dtype=param_dtype)  # noqa: E731
    return random_module(build, seed)


@pytest.mark.parametrize("config", [SD, SDXL])
def test_there_and_back_is_bit_equal(tmp_path, config):
    adapter = adapter_of(config)
    save_adapter(tmp_path / "adapter", adapter, metadata=METADATA)
    for place in (tmp_path / "adapter", tmp_path / "adapter" / "adapter.safetensors"):
        loaded = load_adapter(place)
        assert loaded.config == config
        assert_same(loaded, adapter)


def test_keys_and_shapes_are_the_authors(tmp_path):
    save_adapter(tmp_path, adapter_of(SDXL), metadata=METADATA)
    tensors = load_file(tmp_path / "adapter.safetensors")
    assert {key: value.shape for key, value in tensors.items()} == {
        "layernorm.weight": (6,),
        "layernorm.bias": (6,),
        "projector.0.weight": (10, 6),
        "projector.2.weight": (10, 10),
        "projector.4.weight": (10, 10),
        "projector.6.weight": (12, 10),
        "fc.weight": (8, 12),
        "fc.bias": (8,),
    }


def test_config_says_what_the_adapter_is(tmp_path):
    save_adapter(tmp_path, adapter_of(SD), metadata=METADATA)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written == {
        "architecture": {
            "input_width": 6,
            "hidden_width": 10,
            "output_width": 8,
            "projector_layers": 3,
            "pooled_width": None,
        },
        "base_model": "tinyworld/sd",
        "language_encoder": "tinyworld/xlm-roberta",
        "step": 30,
        "pea_jax_version": pea_jax.__version__,
    }
    (tmp_path / "adapter.safetensors").unlink()
    assert read_adapter_config(tmp_path) == (SD, written)


def test_files_are_float32(tmp_path):
    save_adapter(tmp_path, adapter_of(SD, param_dtype=jnp.bfloat16), metadata=METADATA)
    tensors = load_file(tmp_path / "adapter.safetensors")
    assert {value.dtype for value in tensors.values()} == {np.dtype(np.float32)}


def test_another_adapter_is_not_overwritten_unless_told(tmp_path):
    save_adapter(tmp_path, adapter_of(SD), metadata=METADATA)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    save_adapter(tmp_path, adapter_of(SD), metadata=METADATA)  # the same one again
    with pytest.raises(ValueError, match=r"adapter\.safetensors: there, .* not overwritten"):
        save_adapter(tmp_path, adapter_of(SD, seed=1), metadata=METADATA)
    with pytest.raises(ValueError, match=r"/config\.json: there, .* not overwritten"):
        save_adapter(tmp_path, adapter_of(SD), metadata=METADATA | {"step": 31})
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    save_adapter(tmp_path, adapter_of(SD, seed=1), metadata=METADATA, overwrite=True)
    assert_same(load_adapter(tmp_path), adapter_of(SD, seed=1))


def test_metadata_that_is_missing_or_reserved_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"missing \['base_model'\], reserved \['architecture'\]"):
        save_adapter(
            tmp_path / "new", adapter_of(SD), metadata={"language_encoder": "x", "architecture": {}}
        )
    assert not (tmp_path / "new").exists()


def test_missing_files_are_named(tmp_path):
    with pytest.raises(WeightsError, match="adapter: no such folder or file"):
        load_adapter(tmp_path / "adapter")
    with pytest.raises(WeightsError, match=r"config\.json: no such file"):
        load_adapter(tmp_path)
    save_adapter(tmp_path, adapter_of(SD), metadata=METADATA)
    (tmp_path / "adapter.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"adapter\.safetensors: no such weights file"):
        load_adapter(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "problem"),
    [
        (None, "expected an architecture of .* got None"),
        ({"input_width": 6}, "expected an architecture of"),
        ({"hidden_width": -1}, r"config\.json: adapter config: hidden_width"),
        (
            {"hidden_width": 12},
            r"misshapen: projector\.0\.weight, expected \[12, 6\], got \[10, 6\]",
        ),
        ({"projector_layers": 4}, r"missing: projector\.6\.weight"),
        ({"projector_layers": 2}, r"extra: projector\.4\.weight"),
    ],
)
def test_a_config_that_does_not_describe_the_weights_is_refused(tmp_path, architecture, problem):
    save_adapter(tmp_path, adapter_of(SD), metadata=METADATA)
    config = json.loads((tmp_path / "config.json").read_text())
    if architecture is not None and len(architecture) == 1 and "input_width" not in architecture:
        architecture = config["architecture"] | architecture
    (tmp_path / "config.json").write_text(json.dumps(config | {"architecture": architecture}))
    with pytest.raises(WeightsError, match=problem):
        load_adapter(tmp_path)


def test_both_ends_must_fit():
    check_fit(SD, language_width=6, cross_attention_dim=8)
    problem = r"input_width: expected 1024 .* got 6; output_width: expected 768 .* got 8"
    with pytest.raises(ValueError, match=problem):
        check_fit(SD, language_width=1024, cross_attention_dim=768)
