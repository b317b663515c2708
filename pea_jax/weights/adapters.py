"""Trained adapters: adapter.safetensors in the authors' key layout, and config.json beside it."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

import pea_jax
from pea_jax.models.adapter import Adapter, AdapterConfig
from pea_jax.weights.load import WeightsError, load_module
from pea_jax.weights.locate import read_json
from pea_jax.weights.save import serialize, write_atomically

WEIGHTS_FILE = "adapter.safetensors"
CONFIG_FILE = "config.json"

_RESERVED = ("architecture", "pea_jax_version")


def save_adapter(
    folder: Path | str,
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
    config = {
        "architecture": dataclasses.asdict(adapter.config),
        **metadata,
        "pea_jax_version": pea_jax.__version__,
    }
    contents = {
        WEIGHTS_FILE: serialize(adapter, dtype=jnp.float32),
        CONFIG_FILE: (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
    }
    folder = Path(folder)
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
        write_atomically(folder / name, content)


def read_adapter_config(folder_or_file: Path | str) -> tuple[AdapterConfig, dict[str, Any]]:
    """The shape of a saved adapter and all that its config.json says, without its weights.

    Args:
      folder_or_file: what `save_adapter` wrote: the folder, or the safetensors file in it.

    Raises:
      WeightsError: config.json is missing, or does not describe an adapter.
    """
    file = _folder(folder_or_file) / CONFIG_FILE
    config = read_json(file)
    fields = [field.name for field in dataclasses.fields(AdapterConfig)]
    architecture = config.get("architecture")
    if not isinstance(architecture, dict) or set(architecture) != set(fields):
        raise WeightsError(f"{file}: expected an architecture of {fields}, got {architecture!r}")
    try:
        return AdapterConfig(**architecture), config
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{file}: {error}") from error


def load_adapter(folder_or_file: Path | str) -> Adapter:
    """A saved adapter, float32, uncommitted on the default device.

    Raises:
      WeightsError: as for `read_adapter_config`, or weights that are missing or don't fit it.
    """
    config, _ = read_adapter_config(folder_or_file)
    path = Path(folder_or_file)
    file = path / WEIGHTS_FILE if path.is_dir() else path
    return load_module(lambda: Adapter(config, rngs=nnx.Rngs(0)), file, dtype=jnp.float32)


def check_fit(
    adapter: AdapterConfig, *, language_width: int, cross_attention_dim: int, name: str = "adapter"
) -> None:
    """Refuses an adapter that does not lead from this language encoder to this UNet.

    Raises:
      ValueError: both widths that differ, expected and got.
    """
    pairs = (
        ("input_width", language_width, "the language encoder's width"),
        ("output_width", cross_attention_dim, "the UNet's cross_attention_dim"),
    )
    problems = [
        f"{field}: expected {expected} ({whose}), got {getattr(adapter, field)}"
        for field, expected, whose in pairs
        if getattr(adapter, field) != expected
    ]
    if problems:
        raise ValueError(f"{name}: {'; '.join(problems)}")


def _folder(folder_or_file: Path | str) -> Path:
    path = Path(folder_or_file)
    if not path.exists():
        raise WeightsError(f"{path}: no such folder or file of an adapter")
    return path if path.is_dir() else path.parent
