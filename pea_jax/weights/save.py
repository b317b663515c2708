"""A Flax module into safetensors, under the names and in the layout that `load` reads."""

from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors.numpy import save

from pea_jax.runtime.storage import AnyPath, replace_bytes
from pea_jax.weights import names


def save_module(module: nnx.Module, file: Path, *, renamed: names.Aliases = ()) -> None:
    """Writes every parameter of `module` to `file`, whole or not at all.

    Args:
      module: its parameters must be addressable from this process.
      file: safetensors; its folder must exist.
      renamed: (pattern, replacement) for the keys, applied in order.
    """
    tensors = {names.canonical(key, renamed): value for key, value in tensors_of(module).items()}
    # diffusers and transformers read the format as: the layout is PyTorch's.
    replace_bytes(file, save(tensors, metadata={"format": "pt"}))


def tensors_of(module: nnx.Module, *, dtype: DTypeLike | None = None) -> dict[str, np.ndarray]:
    """Every parameter of `module` under its key and in its layout in a checkpoint.

    Args:
      module: its parameters must be addressable from this process.
      dtype: to cast to; None keeps each parameter's own.

    Raises:
      ValueError: a variable that is no parameter.
    """
    tensors = {}
    for path, variable in nnx.to_flat_state(nnx.state(module)):
        key = names.key_of(path)
        if not isinstance(variable, nnx.Param):
            raise ValueError(f"only nnx.Param can be saved; {key} is a {type(variable).__name__}")
        value = np.asarray(jax.device_get(variable.get_value()))
        # safetensors writes the buffer in memory order, ignoring strides.
        tensors[key] = np.asarray(
            value.transpose(names.file_axes_of(path, value.ndim)), dtype=dtype, order="C"
        )
    return tensors


def refuse_used(output: AnyPath) -> None:
    """Raise ValueError where `output` holds anything, or is a file."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is there already: expected a new or an empty folder")
