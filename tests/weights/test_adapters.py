"""Saved adapters: ours, and every layout of the authors."""

import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import pea_jax
from pea_jax.models.adapter import Adapter, AdapterConfig
from pea_jax.weights.adapter_layouts import architecture_of
from pea_jax.weights.adapters import (
    check_fit,
    load_adapter,
    read_adapter,
    read_adapter_config,
    save_adapter,
    write_adapter,
)
from pea_jax.weights.load import WeightsError
from tests.models.random_module import random_module
from tests.weights.test_load import assert_same

METADATA = {"base_model": "tinyworld/sd", "language_encoder": "tinyworld/xlm-roberta", "step": 30}
SD = AdapterConfig(input_width=6, hidden_width=10, output_width=8)
SDXL = AdapterConfig(6, 10, output_width=8, projector_layers=4, pooled_width=12)
BIASED = AdapterConfig(6, 10, output_width=8, projector_layers=2, pooled_width=12, bias=True)

#: method.md's table: the keys and shapes that the authors' files have, written out.
NORM = {"layernorm.weight": (1024,), "layernorm.bias": (1024,)}
FC = {"fc.weight": (2048, 1280), "fc.bias": (2048,)}
LAYOUTS = {
    "sdxl, chinese_clip": (
        AdapterConfig(1024, 1024, 2048, pooled_width=1280),
        NORM
        | {
            "projector.0.weight": (1024, 1024),
            "projector.2.weight": (1024, 1024),
            "projector.4.weight": (1280, 1024),
        }
        | FC,
    ),
    "sdxl, mul_clip": (
        AdapterConfig(1024, 2048, 2048, pooled_width=1280),
        NORM
        | {
            "projector.0.weight": (2048, 1024),
            "projector.2.weight": (2048, 2048),
            "projector.4.weight": (1280, 2048),
        }
        | FC,
    ),
    "sdxl, mt5": (
        AdapterConfig(2048, 2048, 2048, pooled_width=1280),
        {
            "layernorm.weight": (2048,),
            "layernorm.bias": (2048,),
            "projector.0.weight": (2048, 2048),
            "projector.2.weight": (2048, 2048),
            "projector.4.weight": (1280, 2048),
        }
        | FC,
    ),
    "sdxl, alt_clip": (
        AdapterConfig(768, 2048, 2048, pooled_width=1280),
        {
            "layernorm.weight": (768,),
            "layernorm.bias": (768,),
            "projector.0.weight": (2048, 768),
            "projector.2.weight": (2048, 2048),
            "projector.4.weight": (1280, 2048),
        }
        | FC,
    ),
    "sd 1.5": (
        AdapterConfig(1024, 2048, 768),
        NORM
        | {
            "projector.0.weight": (2048, 1024),
            "projector.2.weight": (2048, 2048),
            "projector.4.weight": (768, 2048),
        },
    ),
    "sd 1.5, five layers": (
        AdapterConfig(1024, 3072, 768, projector_layers=5),
        NORM
        | {
            "projector.0.weight": (3072, 1024),
            "projector.2.weight": (3072, 3072),
            "projector.4.weight": (3072, 3072),
            "projector.6.weight": (3072, 3072),
            "projector.8.weight": (768, 3072),
        },
    ),
    "pytorch_model.bin": (
        AdapterConfig(1024, 1024, 2048, projector_layers=2, pooled_width=1280, bias=True),
        NORM
        | {
            "fc1.weight": (1024, 1024),
            "fc1.bias": (1024,),
            "fc2.weight": (1280, 1024),
            "fc2.bias": (1280,),
            "fc3.weight": (2048, 1280),
            "fc3.bias": (2048,),
        },
    ),
    "pytorch_model_pg.bin": (
        AdapterConfig(1024, 2048, 2048, projector_layers=4, pooled_width=1280),
        NORM
        | {
            "projector.0.weight": (2048, 1024),
            "projector.2.weight": (2048, 2048),
            "projector.4.weight": (2048, 2048),
            "projector.6.weight": (1280, 2048),
        }
        | FC,
    ),
}


def adapter_of(config: AdapterConfig, seed: int = 0, param_dtype=jnp.float32) -> Adapter:
    build = lambda: Adapter(config, rngs=nnx.Rngs(0), param_dtype=param_dtype)  # noqa: E731
    return random_module(build, seed)


def file_of(file, config: AdapterConfig, dtype=np.float16, prefix: str = ""):
    """A bare file of the authors' keys, and what is in it."""
    shutil.rmtree(file.parent / "made", ignore_errors=True)
    save_adapter(file.parent / "made", adapter_of(config), metadata=METADATA)
    tensors = load_file(file.parent / "made" / "adapter.safetensors")
    tensors = {prefix + key: value.astype(dtype) for key, value in tensors.items()}
    save_file(tensors, file)
    return tensors


@pytest.mark.parametrize("config", [SD, SDXL, BIASED])
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
            "bias": False,
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


def test_another_adapter_is_not_overwritten(tmp_path):
    save_adapter(tmp_path, adapter_of(SD), metadata=METADATA)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    save_adapter(tmp_path, adapter_of(SD), metadata=METADATA)  # the same one again
    with pytest.raises(ValueError, match=r"adapter\.safetensors: there, .* not overwritten"):
        save_adapter(tmp_path, adapter_of(SD, seed=1), metadata=METADATA)
    with pytest.raises(ValueError, match=r"/config\.json: there, .* not overwritten"):
        save_adapter(tmp_path, adapter_of(SD), metadata=METADATA | {"step": 31})
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_published_layout_is_recognised(layout):
    """By keys and shapes alone, in whatever order they come, wrapped or not."""
    config, shapes = LAYOUTS[layout]
    assert architecture_of(shapes) == config
    assert architecture_of({f"module.{key}": shapes[key] for key in sorted(shapes)}) == config


def test_layers_are_ordered_by_number():
    """projector.10 comes after projector.8, which a plain sort would not have it."""
    config = AdapterConfig(3, 4, 5, projector_layers=6)
    inner = {f"projector.{i}.weight": (4, 4) for i in (2, 4, 6, 8)}
    shapes = {"projector.10.weight": (5, 4), **inner, "projector.0.weight": (4, 3)}
    shapes |= {"layernorm.weight": (3,), "layernorm.bias": (3,)}
    assert architecture_of({key: shapes[key] for key in sorted(shapes)}) == config


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"layernorm.bias": None}, r": missing: layernorm\.bias \[6\]$"),
        ({"fc.bias": None}, r": missing: fc\.bias \[8\]$"),
        ({"fc.weight": None}, r": .*extra: fc\.bias \[8\]"),
        (
            {"projector.2.weight": (10, 9)},
            r"misshapen: projector\.2\.weight, expected \[10, 10\], ",
        ),
        (
            {"projector.2.weight": None},
            r"biases\): missing: projector\.2\.weight \[10, 10\]; extra: .*6\.w.*misshapen",
        ),
        ({"projector.0.bias": (10,)}, r": extra: projector\.0\.bias \[10\]$"),
        ({"fc1.weight": (10, 6)}, r": extra: fc1\.weight \[10, 6\]$"),
        (
            {"projector.0.weight": (10, 6, 1, 1)},
            r": got layernorm\.weight \[6\]; .*\[10, 6, 1, 1\]",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_differs_from_an_adapter_is_listed(change, problem):
    shapes = {
        "layernorm.weight": (6,),
        "layernorm.bias": (6,),
        "projector.0.weight": (10, 6),
        "projector.2.weight": (10, 10),
        "projector.4.weight": (10, 10),
        "projector.6.weight": (12, 10),
        "fc.weight": (8, 12),
        "fc.bias": (8,),
    }
    assert architecture_of(shapes) == SDXL
    shapes = {key: shape for key, shape in (shapes | change).items() if shape is not None}
    with pytest.raises(WeightsError, match=problem) as raised:
        architecture_of(shapes, name="x.bin")
    assert str(raised.value).startswith("x.bin: expected the tensors of an adapter (layernorm, ")
    assert "\n" not in str(raised.value)


def test_keys_that_are_no_adapter_are_listed():
    shapes = {f"down_blocks.{i}.conv.weight": (4, 4, 3, 3) for i in range(20)}
    problem = r": got down_blocks\.0\.conv\.weight \[4, 4, 3, 3\]; .*7\.conv.*\]; 12 more$"
    with pytest.raises(WeightsError, match=problem):
        architecture_of(shapes)
    with pytest.raises(WeightsError, match=r"got none$"):
        architecture_of({})
    with pytest.raises(WeightsError, match=r"got fc1\.weight \[3, 4\]$"):
        architecture_of({"fc1.weight": (3, 4)})


@pytest.mark.parametrize("config", [SD, SDXL, BIASED], ids=["sd", "sdxl", "biased"])
@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_bare_file_is_loaded_and_written_bit_equal(tmp_path, config, dtype, prefix):
    """What went through float32 and was not trained is the same again in the file's own type."""
    file = tmp_path / "official.safetensors"
    tensors = file_of(file, config, dtype, prefix)
    assert read_adapter_config(file) == (config, {})
    adapter = load_adapter(file)
    assert adapter.config == config
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(adapter))} == {jnp.dtype("float32")}
    save_adapter(tmp_path / "again", adapter, metadata=METADATA)
    again = load_file(tmp_path / "again" / "adapter.safetensors")
    assert {f"{prefix}{key}" for key in again} == set(tensors)
    for key, value in again.items():
        np.testing.assert_array_equal(value.astype(dtype), tensors[prefix + key], strict=True)


def test_a_renamed_file_of_ours_needs_no_config(tmp_path):
    """And the config.json of something else beside it is not taken for its own."""
    save_adapter(tmp_path, adapter_of(SDXL), metadata=METADATA)
    (tmp_path / "adapter.safetensors").rename(tmp_path / "mine.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert read_adapter_config(tmp_path / "mine.safetensors") == (SDXL, {})
    assert_same(load_adapter(tmp_path / "mine.safetensors"), adapter_of(SDXL))
    (tmp_path / "config.json").unlink()
    (tmp_path / "mine.safetensors").rename(tmp_path / "adapter.safetensors")
    assert read_adapter_config(tmp_path / "adapter.safetensors") == (SDXL, {})


def test_a_config_of_before_there_were_biases_is_read(tmp_path):
    save_adapter(tmp_path, adapter_of(SD), metadata=METADATA)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architecture"]["bias"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_adapter_config(tmp_path) == (SD, config)


def test_tensors_are_read_in_order_and_in_their_types(tmp_path):
    file = tmp_path / "official.safetensors"
    tensors = file_of(file, BIASED, np.float16, "module.")
    mixed = tensors | {"module.fc1.bias": tensors["module.fc1.bias"].astype(np.float32)}
    save_file(mixed, file)
    tensors = read_adapter(file)
    layers = ("layernorm", "fc1", "fc2", "fc3")
    assert list(tensors) == [f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")]
    for key, value in tensors.items():
        np.testing.assert_array_equal(value, mixed[f"module.{key}"], strict=True)
    write_adapter(tmp_path / "again", tensors, metadata={"step": 3})
    again = load_file(tmp_path / "again" / "adapter.safetensors")
    for key, value in tensors.items():
        np.testing.assert_array_equal(again[key], value, strict=True)
    assert read_adapter_config(tmp_path / "again")[1]["step"] == 3


def test_tensors_that_cannot_be_an_adapters_are_refused(tmp_path):
    file = tmp_path / "official.safetensors"
    tensors = file_of(file, SD)
    save_file(tensors | {"projector.0.weight": np.zeros((10, 6), np.int32)}, file)
    with pytest.raises(WeightsError, match=r"projector\.0\.weight: expected one of .*got int32"):
        read_adapter(file)
    with pytest.raises(WeightsError, match=r"projector\.0\.weight, expected one of .*got I32"):
        load_adapter(file)
    save_file(tensors | {"module.projector.0.weight": tensors["projector.0.weight"]}, file)
    with pytest.raises(WeightsError, match="with and without module"):
        read_adapter(file)
    with pytest.raises(WeightsError, match=r"duplicate: projector\.0\.weight"):
        load_adapter(file)
    save_adapter(tmp_path / "ours", adapter_of(SD), metadata=METADATA)
    save_file(file_of(file, SDXL), tmp_path / "ours" / "adapter.safetensors")
    with pytest.raises(WeightsError, match=r"expected AdapterConfig.*config\.json.*, got Adapter"):
        read_adapter(tmp_path / "ours")


def unet(cross_attention_dim, pooled_width=None):
    return types.SimpleNamespace(cross_attention_dim=cross_attention_dim, pooled_width=pooled_width)


def test_both_ends_must_fit():
    check_fit(SD, 6, unet(8))
    check_fit(SDXL, 6, unet(8, 12))
    problem = r"input_width: expected 1024 .* got 6; output_width: expected 768 .* got 8"
    with pytest.raises(ValueError, match=problem):
        check_fit(SD, 1024, unet(768))
    problem = (
        r"^a\.bin: output_width: .*; pooled_width: expected 1280 \(the UNet's pooled vector\), "
    )
    with pytest.raises(ValueError, match=problem + r"got 12$"):
        check_fit(SDXL, 6, unet(9, 1280), name="a.bin")
    with pytest.raises(ValueError, match=r"expected 1280 .*, got none$"):
        check_fit(SD, 6, unet(8, 1280))
    with pytest.raises(ValueError, match=r"expected none \(the UNet's pooled vector\), got 12$"):
        check_fit(SDXL, 6, unet(8))
