"""Weights that are split over devices, made whole layer by layer."""

import dataclasses
from collections.abc import Callable

import jax
from flax import nnx
from jax.sharding import Sharding
from jaxtyping import Array


def gather_at_use(module: nnx.Module, sharding: Sharding) -> None:
    """Makes every Linear and Conv within `module` bring its kernel to `sharding` when it runs.

    A gradient with respect to the inputs brings it there a second time, and keeps nothing from the
    forward pass: no kernel stays whole from the one to the other. Nothing is computed twice, since
    that gradient needs no more of a layer than its kernel.

    Args:
        module: is changed in place; its parameters are not.
        sharding: the whole array on every device, that is.
    """
    for _, part in nnx.iter_graph(module):
        if isinstance(part, nnx.Linear):
            part.dot_general = _Gathered(part.dot_general, sharding)
        elif isinstance(part, nnx.Conv):
            part.conv_general_dilated = _Gathered(part.conv_general_dilated, sharding)


@dataclasses.dataclass(frozen=True)
class _Gathered:
    """An operation of an input and a kernel; equal to another of the same, as jit asks for."""

    operation: Callable[..., Array]
    sharding: Sharding

    def __call__(self, x: Array, kernel: Array, *arguments, **options) -> Array:
        def run(x: Array, kernel: Array) -> Array:
            # Without this barrier libtpu 0.0.42.1 takes the two passes' gathers for one, although
            # jax.checkpoint puts one before the second, where the step puts one before both.
            split = jax.lax.optimization_barrier(kernel)
            whole = jax.lax.with_sharding_constraint(split, self.sharding)
            return self.operation(x, whole, *arguments, **options)

        return jax.checkpoint(run)(x, kernel)
