"""The adapter: the one network that is trained (method.md, "The adapter").

Its attribute paths are the keys of the authors' files: layernorm.*, projector.{0,2,4}.weight, fc.*.
One released file has biases in every layer and calls the layers fc1, fc2 and fc3 (see
`weights.adapters`); it is the same network.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pea_jax.models.blocks import layer_norm
from pea_jax.models.conditioning import Conditioning
from pea_jax.runtime.config_fields import COUNT, FLAG, Config, field, optional


@dataclasses.dataclass(frozen=True)
class AdapterConfig(Config, label="adapter config"):
    """The shape of an adapter.

    Attributes:
        input_width: width of the language encoder's tokens.
        hidden_width: width between the projector's linear layers.
        output_width: width of the conditioning's tokens: 768 for SD 1.x, 1024 for SD 2.x, 2048 for
            SDXL.
        projector_layers: number of linear layers in the projector, at least 2.
        pooled_width: width of the pooled vector, 1280 for SDXL; None for SD 1.x and 2.x.
        bias: whether the projector's linear layers have biases. It requires a pooled vector: no
            other adapter was published with biases, and its keys would be ambiguous.
    """

    input_width: int = field(COUNT)
    hidden_width: int = field(COUNT)
    output_width: int = field(COUNT)
    projector_layers: int = field(COUNT, 3)
    pooled_width: int | None = field(optional(COUNT), None)
    bias: bool = field(FLAG, False)

    def misfits(self) -> list[str]:
        """The projector has two layers or more, and biases only beside a pooled vector."""
        problems = []
        if self.projector_layers == 1:
            problems.append("projector_layers: expected at least 2, got 1")
        if self.bias and self.pooled_width is None:
            problems.append("bias: expected false without a pooled_width, got true")
        return problems


class _Gelu(nnx.Module):
    """The exact (erf) GELU as a layer; it has the odd indices of the projector, as in the files."""

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return jax.nn.gelu(x, approximate=False)


class Adapter(nnx.Module):
    """Tokens of a language encoder -> the conditioning that a UNet was trained on.

        h = projector(layernorm(x))    Linear, then GELU and Linear for each further layer;
                                       biases only with config.bias

        SD 1.x, 2.x:  tokens = h
        SDXL:         pooled = mean of h over all tokens, padding included
                      tokens = fc(GELU(h))                                fc has a bias

    GELU is the exact one; the layer norm has eps 1e-5 and its statistics are in float32. The
    initialization is PyTorch's: uniform in +-1/sqrt(fan_in).
    """

    def __init__(
        self,
        config: AdapterConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
    ):
        self.config = config
        leaf = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        self.layernorm = layer_norm(config.input_width, 1e-5, **leaf)

        def linear(inputs: int, outputs: int, use_bias: bool) -> nnx.Linear:
            init = _uniform(inputs)
            return nnx.Linear(
                inputs, outputs, use_bias=use_bias, kernel_init=init, bias_init=init, **leaf
            )

        last = config.output_width if config.pooled_width is None else config.pooled_width
        inner = [config.hidden_width] * (config.projector_layers - 1)
        widths = [config.input_width, *inner, last]
        layers: list[nnx.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [linear(inputs, outputs, use_bias=config.bias), _Gelu()]
        self.projector = nnx.List(layers[:-1])  # the last linear layer has no GELU after it
        if config.pooled_width is not None:
            self.fc = linear(config.pooled_width, config.output_width, use_bias=True)

    def __call__(self, tokens: Float[Array, "B L D_in"]) -> Conditioning:
        """Map the encoder's last hidden state [B, L, input_width] to a conditioning.

        Returns:
            tokens [B, L, output_width], and pooled [B, pooled_width] or None.

        Raises:
            ValueError: the width of `tokens` is not the adapter's input_width.
        """
        if tokens.shape[-1] != self.config.input_width:
            raise ValueError(
                f"adapter: expected tokens of width {self.config.input_width} (input_width), "
                f"got {tokens.shape[-1]}"
            )
        hidden = self.layernorm(tokens)
        for layer in self.projector:
            hidden = layer(hidden)
        if self.config.pooled_width is None:
            return Conditioning(tokens=hidden)
        pooled = jnp.mean(hidden, axis=1, dtype=jnp.float32).astype(hidden.dtype)
        return Conditioning(tokens=self.fc(jax.nn.gelu(hidden, approximate=False)), pooled=pooled)


def _uniform(fan_in: int) -> nnx.Initializer:
    """The initializer of PyTorch's linear layers: uniform in +-1/sqrt(fan_in)."""
    bound = fan_in**-0.5

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw
