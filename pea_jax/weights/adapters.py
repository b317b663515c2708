"""Trained adapters: our files, and those of the authors.

Ours are adapter.safetensors and config.json beside it. The authors' are bare state dicts, torch
pickles mostly, whose layout shows in their keys and shapes:

    layernorm.*   projector.{0,2,...}.weight           SD 1.x and 2.x
    layernorm.*   projector.{0,2,...}.weight   fc.*    SDXL, a pooled vector between the two
    layernorm.*   fc1.*, fc2.*, ...                    SDXL with biases; the last one is that fc

The keys of ours are the same, so either side reads what the other wrote. `layer_names` is the one
rule that leads from the module to a layout; reading and writing both go by it.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save

import pea_jax
from pea_jax.models.adapter import Adapter, AdapterConfig
from pea_jax.runtime.storage import AnyPath, replace_bytes
from pea_jax.weights import names
from pea_jax.weights.errors import WeightsError
from pea_jax.weights.load import load_module, read_header, read_tensors
from pea_jax.weights.locate import read_json
from pea_jax.weights.save import tensors_of

WEIGHTS_FILE = "adapter.safetensors"
CONFIG_FILE = "config.json"

#: What adapters may be stored in.
DTYPES = ("float32", "float16", "bfloat16", "float64")

_RESERVED = ("architecture", "pea_jax_version")

#: What distributed training puts before every key.
_WRAPPER = "module."

#: How many tensors an error lists.
_TOLD = 8


def layer_names(config: AdapterConfig) -> dict[str, str]:
    """The layers of an adapter in their order: the attribute path -> the name in a file."""
    layers = [f"projector.{2 * i}" for i in range(config.projector_layers)]
    layers += [] if config.pooled_width is None else ["fc"]
    called = [f"fc{i}" for i in range(1, len(layers) + 1)] if config.bias else layers
    return {"layernorm": "layernorm", **dict(zip(layers, called, strict=True))}


def architecture_of(shapes: Mapping[str, Sequence[int]], *, name: str = "adapter") -> AdapterConfig:
    """Which adapter a file holds, from its keys and shapes.

    Args:
      shapes: of every tensor of the file, with or without a prefix `module.`.
      name: of the file, for errors.

    Raises:
      WeightsError: in one line, if it is of no layout of this module, or not wholly.
    """
    shapes = {key.removeprefix(_WRAPPER): tuple(shape) for key, shape in shapes.items()}
    config = _nearest(shapes)
    if config is None:
        problems = [f"{key} {list(shape)}" for key, shape in shapes.items()] or ["none"]
    else:
        problems = _differences(shapes, _file_shapes(config))
        if not problems:
            return config
    more = len(problems) - _TOLD
    told = [*problems[:_TOLD], *([f"{more} more"] if more > 0 else [])]
    raise WeightsError(
        f"{name}: expected the tensors of an adapter (layernorm, projector.0, projector.2, ..., "
        f"and for SDXL fc; or layernorm, fc1, fc2, ..., all with biases): "
        f"{'got ' if config is None else ''}{'; '.join(told)}"
    )


def save_adapter(
    folder: AnyPath | str,
    adapter: Adapter,
    *,
    metadata: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Writes adapter.safetensors (float32) and config.json into `folder`, making it.

    config.json holds `metadata`, the adapter's `architecture` and `pea_jax_version`.

    Args:
      folder: may hold other files.
      adapter: the trained one.
      metadata: of what JSON holds; `base_model` and `language_encoder`, the names that the adapter
        was trained between, are required.
      overwrite: replace files that hold something else.

    Raises:
      ValueError: metadata that is missing or reserved; or a file that is there, differs, and
        `overwrite` is not set: nothing is written then.
    """
    missing = [name for name in ("base_model", "language_encoder") if name not in metadata]
    taken = [name for name in _RESERVED if name in metadata]
    if missing or taken:
        raise ValueError(f"adapter metadata: missing {missing}, reserved {taken}")
    called = layer_names(adapter.config)
    tensors = {
        _renamed(key, called): value
        for key, value in tensors_of(adapter, dtype=jnp.float32).items()
    }
    write_adapter(folder, tensors, metadata=metadata, overwrite=overwrite)


def write_adapter(
    folder: AnyPath | str,
    tensors: Mapping[str, np.ndarray],
    *,
    metadata: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """What `save_adapter` writes, of `tensors` as `read_adapter` gives them, in their own types.

    Args:
      folder: may hold other files.
      tensors: of one adapter, all of them.
      metadata: as for `save_adapter`; what is not known may be left out, and the reserved names of
        another config.json are written anew.
      overwrite: replace files that hold something else.

    Raises:
      ValueError: as for `architecture_of`, or a file that must not be overwritten.
    """
    architecture = architecture_of({key: value.shape for key, value in tensors.items()})
    config = {
        **metadata,
        "architecture": dataclasses.asdict(architecture),
        "pea_jax_version": pea_jax.__version__,
    }
    contents = {
        # safetensors writes the buffer as it lies in memory, whatever its strides say.
        WEIGHTS_FILE: save(
            {key: np.asarray(value, order="C") for key, value in tensors.items()},
            metadata={"format": "pt"},
        ),
        CONFIG_FILE: (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
    }
    folder = Path(folder) if isinstance(folder, str) else folder
    differing = [
        str(folder / name)
        for name, content in contents.items()
        if (folder / name).exists() and (folder / name).read_bytes() != content
    ]
    if differing and not overwrite:
        raise ValueError(
            f"{' and '.join(differing)}: there, and of another adapter; not overwritten"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        replace_bytes(folder / name, content)


def read_adapter_config(folder_or_file: Path | str) -> tuple[AdapterConfig, dict[str, Any]]:
    """The shape of an adapter and all that its config.json says, without its weights.

    Args:
      folder_or_file: what `save_adapter` wrote, the folder or adapter.safetensors in it; or a bare
        file of any name and layout, ours or the authors', safetensors or a torch pickle. Nothing
        is known of a bare file but its shape, and {} is returned beside it.

    Raises:
      WeightsError: config.json of the folder is missing, or does not describe an adapter; or a bare
        file that holds none.
    """
    weights, file = _files(folder_or_file)
    if file is None:
        return architecture_of(read_header(weights), name=str(weights)), {}
    config = read_json(file)
    fields = dataclasses.fields(AdapterConfig)
    known = {field.name for field in fields}
    # Fields that have a default came later than some files.
    required = {field.name for field in fields if field.default is dataclasses.MISSING}
    architecture = config.get("architecture")
    if not isinstance(architecture, dict) or not required <= set(architecture) <= known:
        raise WeightsError(
            f"{file}: expected an architecture of {[field.name for field in fields]}, "
            f"got {architecture!r}"
        )
    try:
        return AdapterConfig(**architecture), config
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{file}: {error}") from error


def load_adapter(folder_or_file: Path | str) -> Adapter:
    """A saved adapter, float32, uncommitted on the default device.

    Args:
      folder_or_file: as for `read_adapter_config`.

    Raises:
      WeightsError: as for `read_adapter_config`, or weights that are missing or don't fit it.
    """
    config, _ = read_adapter_config(folder_or_file)
    file, _ = _files(folder_or_file)
    renamed = [
        (f"^{re.escape(called)}\\.", f"{path}.") for path, called in layer_names(config).items()
    ]
    return load_module(
        lambda: Adapter(config, rngs=nnx.Rngs(0)),
        file,
        dtype=jnp.float32,
        aliases=[(f"^{re.escape(_WRAPPER)}", ""), *renamed],
    )


def read_adapter(folder_or_file: Path | str) -> dict[str, np.ndarray]:
    """The tensors of a saved adapter in the layout and the types of its file.

    Args:
      folder_or_file: as for `read_adapter_config`.

    Returns:
      By the authors' keys (without `module.`), from the first layer to the last.

    Raises:
      WeightsError: as for `load_adapter`.
    """
    config, _ = read_adapter_config(folder_or_file)
    file, _ = _files(folder_or_file)
    given = read_tensors(file)
    found = architecture_of({key: value.shape for key, value in given.items()}, name=str(file))
    if found != config:
        raise WeightsError(f"{file}: expected {config} (its {CONFIG_FILE}), got {found}")
    tensors = {key.removeprefix(_WRAPPER): value for key, value in given.items()}
    problems = [
        f"{key}: expected one of {', '.join(DTYPES)}, got {value.dtype}"
        for key, value in tensors.items()
        if value.dtype.name not in DTYPES
    ]
    if len(tensors) != len(given):
        problems.append(f"some keys are there with and without {_WRAPPER}")
    if problems:
        raise WeightsError(f"{file}: {'; '.join(problems)}")
    return {key: tensors[key] for key in _file_shapes(config)}


def check_fit(
    adapter: AdapterConfig,
    *,
    language_width: int,
    cross_attention_dim: int,
    pooled_width: int | None = None,
    name: str = "adapter",
) -> None:
    """Refuses an adapter that does not lead from this language encoder to this UNet.

    Args:
      adapter: its shape.
      language_width: of the encoder's tokens.
      cross_attention_dim: of the UNet.
      pooled_width: of the pooled vector that the UNet takes; None where it takes none.
      name: of the adapter, for errors.

    Raises:
      ValueError: all widths that differ, expected and got.
    """
    pairs = (
        ("input_width", language_width, "the language encoder's width"),
        ("output_width", cross_attention_dim, "the UNet's cross_attention_dim"),
        ("pooled_width", pooled_width, "the UNet's pooled vector"),
    )
    problems = [
        f"{field}: expected {_or_none(expected)} ({whose}), got {_or_none(getattr(adapter, field))}"
        for field, expected, whose in pairs
        if getattr(adapter, field) != expected
    ]
    if problems:
        raise ValueError(f"{name}: {'; '.join(problems)}")


def _files(folder_or_file: Path | str) -> tuple[Path, Path | None]:
    """The file of the weights, and the config.json that belongs to it; None for a bare file."""
    path = Path(folder_or_file)
    if not path.exists():
        raise WeightsError(f"{path}: no such folder or file of an adapter")
    if path.is_dir():
        return path / WEIGHTS_FILE, path / CONFIG_FILE
    config = path.with_name(CONFIG_FILE)
    # Beside a file of another name it may be of anything.
    return path, config if path.name == WEIGHTS_FILE and config.exists() else None


def _renamed(key: str, layers: Mapping[str, str]) -> str:
    layer, _, leaf = key.rpartition(".")
    return f"{layers[layer]}.{leaf}"


@functools.cache
def _file_shapes(config: AdapterConfig) -> Mapping[str, tuple[int, ...]]:
    """Every key of the file of such an adapter with its shape, from the first layer to the last."""
    module = nnx.eval_shape(lambda: Adapter(config, rngs=nnx.Rngs(0)))
    called = layer_names(config)
    shapes = {
        _renamed(names.key_of(path), called): names.file_shape(path, variable.shape)
        for path, variable in nnx.to_flat_state(nnx.state(module))
    }
    keys = [f"{layer}.{leaf}" for layer in called.values() for leaf in ("weight", "bias")]
    return {key: shapes[key] for key in keys if key in shapes}


def _nearest(shapes: Mapping[str, tuple[int, ...]]) -> AdapterConfig | None:
    """The adapter that the linear layers of a file are of, if all the rest of it fits."""
    projector = _numbered(shapes, r"projector\.(\d+)\.weight")
    bias = not projector
    layers = _numbered(shapes, r"fc(\d+)\.weight") if bias else projector
    if "fc.weight" in shapes and not bias:
        layers.append(shapes["fc.weight"])
    pooled = bias or "fc.weight" in shapes
    if not layers or any(len(shape) != 2 for shape in layers):
        return None
    try:
        return AdapterConfig(
            input_width=layers[0][1],
            hidden_width=layers[0][0],
            output_width=layers[-1][0],
            projector_layers=len(layers) - pooled,
            pooled_width=layers[-1][1] if pooled else None,
            bias=bias,
        )
    except ValueError:
        return None


def _numbered(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> list[tuple[int, ...]]:
    """Shapes of the keys of a pattern, in the order of their numbers."""
    found = {int(match[1]): shapes[key] for key in shapes if (match := re.fullmatch(pattern, key))}
    return [found[number] for number in sorted(found)]


def _differences(
    got: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> list[str]:
    missing = [f"missing: {key} {list(expected[key])}" for key in expected if key not in got]
    extra = [f"extra: {key} {list(got[key])}" for key in got if key not in expected]
    misshapen = [
        f"misshapen: {key}, expected {list(expected[key])}, got {list(got[key])}"
        for key in expected
        if key in got and got[key] != expected[key]
    ]
    return missing + extra + misshapen


def _or_none(width: int | None) -> str:
    return "none" if width is None else str(width)
