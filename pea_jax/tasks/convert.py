"""`pea-jax convert`: convert an adapter file between the authors' format and ours.

    OUTPUT/adapter.safetensors, config.json   ours
    OUTPUT/pytorch_model.bin                  the authors', with --format torch

The tensors keep their keys, which are the same in both formats, and without --dtype their types:
converting there and back gives the same bits.
"""

from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from pea_jax.models.adapter import AdapterConfig
from pea_jax.runtime.storage import AnyPath, replace_bytes
from pea_jax.weights.adapter_layouts import layer_names
from pea_jax.weights.adapters import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    read_adapter,
    read_adapter_config,
    write_adapter,
)
from pea_jax.weights.pickles import serialize_pickle
from pea_jax.weights.save import refuse_used

TORCH_FILE = "pytorch_model.bin"

FORMATS = ("safetensors", "torch")
DTYPES = ("float32", "float16", "bfloat16")


def convert(
    file: Path,
    *,
    output: AnyPath,
    format: str | None = None,  # noqa: A002  (the name of the flag)
    dtype: str | None = None,
    language_encoder: str | None = None,
    base: str | None = None,
) -> AnyPath:
    """Write the adapter in `file` to the folder `output`, and return that.

    Args:
      file: an adapter file of any layout, or a folder that `pea-jax export` or `convert` wrote.
      output: a new or empty folder.
      format: one of `FORMATS`; None is safetensors.
      dtype: one of `DTYPES`; None keeps the file's.
      language_encoder: replaces the name in config.json.
      base: replaces the name of the base model in config.json.

    Raises:
      ValueError: an unsupported argument; a file without an adapter, or with values beyond `dtype`;
        a folder that is not empty. Nothing is written then.
    """
    format = format or FORMATS[0]  # noqa: A001
    named = {"base_model": base, "language_encoder": language_encoder}
    named = {name: value for name, value in named.items() if value}
    problems = [
        f"--{name}: expected one of {', '.join(allowed)}, got {value!r}"
        for name, value, allowed in (("format", format, FORMATS), ("dtype", dtype, DTYPES))
        if value is not None and value not in allowed
    ]
    if format == "torch" and named:
        problems.append(
            f"--format torch writes {TORCH_FILE} alone, and no {CONFIG_FILE} to put names in"
        )
    if problems:
        raise ValueError("; ".join(problems))
    refuse_used(output)
    architecture, metadata = read_adapter_config(file)
    tensors = read_adapter(file)
    print(f"{file}: {_described(architecture, tensors)}")
    if dtype is not None:
        tensors = {key: _cast(file, key, value, dtype) for key, value in tensors.items()}
    if format == "torch":
        content = serialize_pickle(tensors)
        output.mkdir(parents=True, exist_ok=True)
        replace_bytes(output / TORCH_FILE, content)
    else:
        write_adapter(output, tensors, metadata={**metadata, **named})
    written = TORCH_FILE if format == "torch" else f"{WEIGHTS_FILE}, {CONFIG_FILE}"
    print(f"{output}: {written} ({_types(tensors)})")
    return output


def _described(config: AdapterConfig, tensors: Mapping[str, np.ndarray]) -> str:
    """The layers, widths, size and types of an adapter, in one line."""
    widths = [config.input_width, *[config.hidden_width] * (config.projector_layers - 1)]
    widths += [] if config.pooled_width is None else [f"{config.pooled_width} (pooled)"]
    parameters = sum(value.size for value in tensors.values())
    return (
        f"an adapter of {', '.join(layer_names(config).values())}; "
        f"widths {' -> '.join(map(str, [*widths, config.output_width]))}; "
        f"{parameters:,} parameters, {_types(tensors)}"
    )


def _types(tensors: Mapping[str, np.ndarray]) -> str:
    return " and ".join(sorted({value.dtype.name for value in tensors.values()}))


def _cast(file: Path, key: str, value: np.ndarray, dtype: str) -> np.ndarray:
    try:
        with np.errstate(over="raise"):
            return value.astype(jnp.dtype(dtype))
    except FloatingPointError:
        raise ValueError(f"{file}: {key} has values beyond the range of {dtype}") from None
