"""Makes the random models of `tests.tiny` show in an image what they were given.

As they are, their norms scale everything down and no prompt moves a pixel: an adapter that is
ignored, or the wrong one, would look like the right one.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from pea_jax.models.adapter import Adapter, AdapterConfig
from tests import tiny
from tests.models.random_module import random_module

#: What a weight is multiplied with, by a part of its name.
_GAINS = {"embedding": 8.0, "attn2.to_q": 16.0, "attn2.to_v": 8.0}


def write_models(folder: Path, *, xl: bool = False) -> Path:
    """The models of `tiny.write_models`, where text, noise and weights all matter."""
    tiny.write_models(folder, xl=xl)
    for file in folder.rglob("*.safetensors"):
        tensors = {name: _sharpen(name, value) for name, value in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    return folder


def make_adapter(
    seed: int = 0,
    output_width: int = tiny.CLIP["hidden_size"],
    pooled_width: int | None = None,
    encoders: int = 1,
) -> Adapter:
    """A random adapter between the two models, or between several encoders and a base."""
    width = encoders * tiny.XLMR["hidden_size"]
    config = AdapterConfig(width, 32, output_width, pooled_width=pooled_width)
    adapter = random_module(lambda: Adapter(config, rngs=nnx.Rngs(0)), seed)
    adapter.layernorm.scale[...] = jnp.ones_like(adapter.layernorm.scale[...])
    return adapter


def _sharpen(name: str, value: np.ndarray) -> np.ndarray:
    if value.ndim == 1 and name.endswith("weight"):
        return 1 + value
    gain = next((gain for part, gain in _GAINS.items() if part in name), 1.0)
    return np.float32(gain) * value
