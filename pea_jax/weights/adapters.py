"""Saves and loads trained adapters: our files, and those of the authors.

Ours are adapter.safetensors with a config.json. The authors' are bare state dicts, mostly torch
pickles, whose layout is recognised by keys and shapes (`adapter_layouts`). Both sides can read
each other's files.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save

import pea_jax
from pea_jax.models.adapter import Adapter, AdapterConfig
from pea_jax.runtime.storage import AnyPath, replace_bytes
from pea_jax.weights.adapter_layouts import (
    WRAPPER,
    architecture_of,
    file_key,
    file_shapes,
    layer_names,
)
from pea_jax.weights.errors import WeightsError
from pea_jax.weights.load import load_module, read_header, read_tensors
from pea_jax.weights.locate import read_json
from pea_jax.weights.save import tensors_of

WEIGHTS_FILE = "adapter.safetensors"
CONFIG_FILE = "config.json"

#: Allowed types of a file's tensors.
DTYPES = ("float32", "float16", "bfloat16", "float64")

_RESERVED = ("architecture", "pea_jax_version")


def save_adapter(
    folder: AnyPath | str,
    adapter: Adapter,
    *,
    metadata: Mapping[str, Any],
) -> None:
    """Writes adapter.safetensors (float32) and config.json into `folder`, creating it if needed.

    config.json holds `metadata`, the adapter's `architecture` and `pea_jax_version`.

    Args:
      folder: may hold other files.
      adapter: the trained one.
      metadata: JSON values; `base_model` and `language_encoder`, the names of the two models that
        the adapter connects, are required.

    Raises:
      ValueError: metadata that is missing or reserved; or an existing file that differs. Nothing
        is written in either case.
    """
    missing = [name for name in ("base_model", "language_encoder") if name not in metadata]
    taken = [name for name in _RESERVED if name in metadata]
    if missing or taken:
        raise ValueError(f"adapter metadata: missing {missing}, reserved {taken}")
    layers = layer_names(adapter.config)
    tensors = tensors_of(adapter, dtype=jnp.float32)
    tensors = {file_key(key, layers): value for key, value in tensors.items()}
    write_adapter(folder, tensors, metadata=metadata)


def write_adapter(
    folder: AnyPath | str, tensors: Mapping[str, np.ndarray], *, metadata: Mapping[str, Any]
) -> None:
    """Writes the files of `save_adapter` from tensors, keeping their types.

    Args:
      folder: may hold other files.
      tensors: all tensors of one adapter, as `read_adapter` returns them.
      metadata: as for `save_adapter`, but nothing is required, and reserved names are replaced.

    Raises:
      ValueError: as for `architecture_of`, or an existing file that differs.
    """
    architecture = architecture_of({key: value.shape for key, value in tensors.items()})
    config = {
        **metadata,
        "architecture": dataclasses.asdict(architecture),
        "pea_jax_version": pea_jax.__version__,
    }
    contents = {
        # safetensors writes the buffer in memory order, ignoring strides.
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
    if differing:
        raise ValueError(
            f"{' and '.join(differing)}: there, and of another adapter; not overwritten"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        replace_bytes(folder / name, content)


def read_adapter_config(folder_or_file: Path | str) -> tuple[AdapterConfig, dict[str, Any]]:
    """The architecture of an adapter and the content of its config.json.

    Args:
      folder_or_file: the folder that `save_adapter` wrote, or its adapter.safetensors; or a bare
        file of any name and layout, ours or the authors', safetensors or a torch pickle. A bare
        file has no config.json: its content is {}.

    Raises:
      WeightsError: config.json of the folder is missing or does not describe an adapter; or a bare
        file that holds none.
    """
    weights, file = _files(folder_or_file)
    if file is None:
        return architecture_of(read_header(weights), name=str(weights)), {}
    config = read_json(file)
    architecture = config.get("architecture")
    try:
        return AdapterConfig(**architecture), config
    except TypeError as error:  # no mapping, or one with missing or unknown fields
        names = [field.name for field in dataclasses.fields(AdapterConfig)]
        raise WeightsError(
            f"{file}: expected an architecture of {names}, got {architecture!r}"
        ) from error
    except ValueError as error:
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
        (f"^{re.escape(layer)}\\.", f"{path}.") for path, layer in layer_names(config).items()
    ]
    return load_module(
        lambda: Adapter(config, rngs=nnx.Rngs(0)),
        file,
        dtype=jnp.float32,
        aliases=[(f"^{re.escape(WRAPPER)}", ""), *renamed],
    )


def read_adapter(folder_or_file: Path | str) -> dict[str, np.ndarray]:
    """The tensors of a saved adapter, in the layout and the types of its file.

    Args:
      folder_or_file: as for `read_adapter_config`.

    Returns:
      Tensors by the authors' keys (without `module.`), from the first layer to the last.

    Raises:
      WeightsError: as for `load_adapter`.
    """
    config, _ = read_adapter_config(folder_or_file)
    file, _ = _files(folder_or_file)
    stored = read_tensors(file)
    found = architecture_of({key: value.shape for key, value in stored.items()}, name=str(file))
    if found != config:
        raise WeightsError(f"{file}: expected {config} (its {CONFIG_FILE}), got {found}")
    tensors = {key.removeprefix(WRAPPER): value for key, value in stored.items()}
    problems = [
        f"{key}: expected one of {', '.join(DTYPES)}, got {value.dtype}"
        for key, value in tensors.items()
        if value.dtype.name not in DTYPES
    ]
    if len(tensors) != len(stored):
        problems.append(f"some keys are there with and without {WRAPPER}")
    if problems:
        raise WeightsError(f"{file}: {'; '.join(problems)}")
    return {key: tensors[key] for key in file_shapes(config)}


def check_fit(
    adapter: AdapterConfig, language_width: int, unet: Any, name: str = "adapter"
) -> None:
    """Refuses an adapter that does not connect this language encoder to this UNet.

    Args:
      adapter: its architecture.
      language_width: width of the encoder's tokens.
      unet: the UNet's config, with its `cross_attention_dim` and `pooled_width`.
      name: of the adapter, for errors.

    Raises:
      ValueError: all widths that differ, expected and got.
    """
    pairs = (
        ("input_width", language_width, "the language encoder's width"),
        ("output_width", unet.cross_attention_dim, "the UNet's cross_attention_dim"),
        ("pooled_width", unet.pooled_width, "the UNet's pooled vector"),
    )
    problems = [
        f"{field}: expected {_or_none(expected)} ({whose}), got {_or_none(getattr(adapter, field))}"
        for field, expected, whose in pairs
        if getattr(adapter, field) != expected
    ]
    if problems:
        raise ValueError(f"{name}: {'; '.join(problems)}")


def _files(folder_or_file: Path | str) -> tuple[Path, Path | None]:
    """The weight file and its config.json; None in its place for a bare file."""
    path = Path(folder_or_file)
    if not path.exists():
        raise WeightsError(f"{path}: no such folder or file of an adapter")
    if path.is_dir():
        return path / WEIGHTS_FILE, path / CONFIG_FILE
    config = path.with_name(CONFIG_FILE)
    # Beside a file of another name, a config.json may belong to anything.
    return path, config if path.name == WEIGHTS_FILE and config.exists() else None


def _or_none(width: int | None) -> str:
    return "none" if width is None else str(width)
