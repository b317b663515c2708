"""Gathering of weights that are split over devices, one layer at a time."""

import dataclasses
from collections.abc import Callable

import jax
from flax import nnx
from jax.sharding import Sharding
from jaxtyping import Array


def gather_at_use(module: nnx.Module, sharding: Sharding) -> None:
    """Makes every Linear and Conv within `module` gather its kernel when it runs.

    The gradient with respect to the inputs gathers the kernel a second time, so no whole kernel is
    stored between the forward and the backward pass. Nothing is computed twice, because this
    gradient needs only the kernel of a layer.

    Args:
        module: changed in place, except for its parameters.
        sharding: of a gathered kernel: the whole array on every device.
    """
    for _, part in nnx.iter_graph(module):
        if isinstance(part, nnx.Linear):
            part.dot_general = _Gathered(part.dot_general, sharding)
        elif isinstance(part, nnx.Conv):
            part.conv_general_dilated = _Gathered(part.conv_general_dilated, sharding)


@dataclasses.dataclass(frozen=True)
class _Gathered:
    """An operation on an input and a kernel; a dataclass, because jit compares it by value."""

    operation: Callable[..., Array]
    sharding: Sharding

    def __call__(self, x: Array, kernel: Array, *arguments, **options) -> Array:
        def run(x: Array, kernel: Array) -> Array:
            # Without this barrier libtpu 0.0.42.1 merges the gathers of the two passes, although
            # jax.checkpoint puts a barrier before the second one: it drops a barrier that follows
            # another, and the train step has one before both.
            split = jax.lax.optimization_barrier(kernel)
            whole = jax.lax.with_sharding_constraint(split, self.sharding)
            return self.operation(x, whole, *arguments, **options)

        return jax.checkpoint(run)(x, kernel)
