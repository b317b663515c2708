"""The file layouts of adapters: keys and shapes of the authors' files and of ours, which are equal.

    layernorm.*   projector.{0,2,...}.weight           SD 1.x and 2.x
    layernorm.*   projector.{0,2,...}.weight   fc.*    SDXL; fc follows the pooled vector
    layernorm.*   fc1.*, fc2.*, ...                    SDXL with biases; the last one is that fc

`layer_names` is the one rule from the module to a layout; reading and writing both use it.
"""

import functools
import re
from collections.abc import Mapping, Sequence

from flax import nnx

from pea_jax.models.adapter import Adapter, AdapterConfig
from pea_jax.weights import names
from pea_jax.weights.errors import WeightsError

#: The prefix that distributed training puts before every key.
WRAPPER = "module."

#: The most tensors that an error lists.
_LISTED = 8


def layer_names(config: AdapterConfig) -> dict[str, str]:
    """The layers of an adapter in order: attribute path -> name in a file."""
    layers = [f"projector.{2 * i}" for i in range(config.projector_layers)]
    layers += [] if config.pooled_width is None else ["fc"]
    in_file = [f"fc{i}" for i in range(1, len(layers) + 1)] if config.bias else layers
    return {"layernorm": "layernorm", **dict(zip(layers, in_file, strict=True))}


def file_key(key: str, layers: Mapping[str, str]) -> str:
    """The key of a parameter in a file, by the names of `layer_names`."""
    layer, _, leaf = key.rpartition(".")
    return f"{layers[layer]}.{leaf}"


def architecture_of(shapes: Mapping[str, Sequence[int]], *, name: str = "adapter") -> AdapterConfig:
    """The architecture of the adapter in a file, from its keys and shapes.

    Args:
      shapes: of every tensor of the file, with or without the prefix `module.`.
      name: of the file, for errors.

    Raises:
      WeightsError: in one line, if it fits no layout of this module exactly.
    """
    shapes = {key.removeprefix(WRAPPER): tuple(shape) for key, shape in shapes.items()}
    config = _nearest(shapes)
    if config is None:
        problems = [f"{key} {list(shape)}" for key, shape in shapes.items()] or ["none"]
    else:
        problems = _differences(shapes, file_shapes(config))
        if not problems:
            return config
    more = len(problems) - _LISTED
    listed = [*problems[:_LISTED], *([f"{more} more"] if more > 0 else [])]
    raise WeightsError(
        f"{name}: expected the tensors of an adapter (layernorm, projector.0, projector.2, ..., "
        f"and for SDXL fc; or layernorm, fc1, fc2, ..., all with biases): "
        f"{'got ' if config is None else ''}{'; '.join(listed)}"
    )


@functools.cache
def file_shapes(config: AdapterConfig) -> Mapping[str, tuple[int, ...]]:
    """Keys and shapes of an adapter's file, from the first layer to the last."""
    module = nnx.eval_shape(lambda: Adapter(config, rngs=nnx.Rngs(0)))
    layers = layer_names(config)
    shapes = {
        file_key(names.key_of(path), layers): names.file_shape(path, variable.shape)
        for path, variable in nnx.to_flat_state(nnx.state(module))
    }
    keys = [f"{layer}.{leaf}" for layer in layers.values() for leaf in ("weight", "bias")]
    return {key: shapes[key] for key in keys if key in shapes}


def _nearest(shapes: Mapping[str, tuple[int, ...]]) -> AdapterConfig | None:
    """The architecture by the linear layers of a file alone; None if they form no adapter."""
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
    """The shapes of the keys that match a pattern, in the order of their numbers."""
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
