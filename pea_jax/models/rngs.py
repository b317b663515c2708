"""Random keys for networks whose parameters are loaded, not initialized."""

import jax
from flax import nnx


class OneKey(nnx.Rngs):
    """The same key for every parameter, without the counter of nnx.Rngs.

    While a module is traced, that counter searches everything traced so far, once per parameter.
    SDXL's UNet with 1,680 parameters takes a minute to trace with it, and two seconds without.
    """

    def __init__(self):
        super().__init__()

    def params(self) -> jax.Array:
        """The key."""
        return jax.random.key(0)
