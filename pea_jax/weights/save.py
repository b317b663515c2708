"""A Flax module into safetensors, under the names and in the layout that `load` reads."""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors.numpy import save

from pea_jax.runtime.storage import AnyPath, replace_bytes
from pea_jax.weights import names


def save_module(
    module: nnx.Module,
    file: Path | str,
    *,
    dtype: DTypeLike | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes every parameter of `module` to `file`, whole or not at all.

    Args:
      module: its parameters must be addressable from this process.
      file: safetensors; its folder must be there.
      dtype: in the file; None keeps each parameter's own.
      metadata: strings for the file's header, beside `format: pt`, which tells diffusers and
        transformers that the layout is PyTorch's.
    """
    replace_bytes(Path(file), serialize(module, dtype=dtype, metadata=metadata))


def serialize(
    module: nnx.Module,
    *,
    dtype: DTypeLike | None = None,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """The bytes that `save_module` writes.

    The same parameters give the same bytes without `metadata`, whose order safetensors leaves open.
    """
    return save(tensors_of(module, dtype=dtype), metadata={"format": "pt", **(metadata or {})})


def tensors_of(module: nnx.Module, *, dtype: DTypeLike | None = None) -> dict[str, np.ndarray]:
    """Every parameter of `module` as a checkpoint has it: its key, and its layout there.

    Args:
      module: its parameters must be addressable from this process.
      dtype: to cast to; None keeps each parameter's own.
    """
    tensors = {}
    for path, variable in nnx.to_flat_state(nnx.state(module)):
        key = names.key_of(path)
        if not isinstance(variable, nnx.Param):
            raise ValueError(f"only nnx.Param can be saved; {key} is a {type(variable).__name__}")
        value = np.asarray(jax.device_get(variable.get_value()))
        # safetensors writes the buffer as it lies in memory, whatever its strides say.
        tensors[key] = np.asarray(
            value.transpose(names.file_axes_of(path, value.ndim)), dtype=dtype, order="C"
        )
    return tensors


def refuse_used(output: AnyPath) -> None:
    """Raise ValueError where `output` holds anything, or is a file."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is there already: expected a new or an empty folder")
