"""Modules with random parameters, made without compiling each initializer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def random_module(build: Callable[[], nnx.Module], seed: int = 0) -> nnx.Module:
    """The module from `build`, with kernels about 1/sqrt(fan in) and all else about 0.3."""
    rng = np.random.default_rng(seed)
    graph, state = nnx.split(nnx.eval_shape(build))

    def draw(leaf) -> jax.Array:
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 1 / 0.09
        return jnp.asarray(rng.normal(size=leaf.shape) * fan_in**-0.5, leaf.dtype)

    state = jax.tree.map(draw, state)
    return nnx.merge(graph, state)
