"""The keys of networks whose parameters are loaded and never drawn."""

import jax
from flax import nnx


class OneKey(nnx.Rngs):
    """One key for every parameter, so that nothing is counted.

    Counting keys while a module is traced looks through all that was traced before, for each
    parameter again: a minute for the 1,680 of SDXL's UNet, which takes two seconds with this.
    """

    def __init__(self):
        super().__init__()

    def params(self) -> jax.Array:
        """The key."""
        return jax.random.key(0)
