"""The encoder of T5 and mT5, as transformers has it (T5EncoderModel, MT5EncoderModel).

Sources: Raffel et al. 2020 (arXiv 1910.10683), section 2.1; Shazeer 2020 (2002.05202) for the gated
MLP of mT5 (Xue et al. 2021, 2010.11934). The keys are those of the published checkpoints:
shared.weight, encoder.block.*, encoder.final_layer_norm.weight. The decoder is not part of it;
`BESIDE` lists the other keys of published files.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from pea_jax.models.attention.core import multi_head_attention
from pea_jax.models.text.towers import Mask, TextOutput, key_mask, run_layers
from pea_jax.runtime.config_fields import COUNT, NUMBER, Config, field, one_of

#: Patterns of the keys that published files have beside the encoder's: the decoder, its head, and a
#: second copy of the embedding under the encoder's name for it. A file that has only this copy
#: loads too (`weights.names.ALIASES`).
BESIDE = (r"encoder\.embed_tokens\.weight", r"decoder\..*", r"lm_head\.weight")

#: "gated-gelu" is the tanh approximation, despite its name.
_ACTIVATIONS: dict[str, Callable] = {
    "relu": jax.nn.relu,
    "gated-gelu": functools.partial(jax.nn.gelu, approximate=True),
}

#: The defaults of transformers' MT5Config that differ from those of T5Config.
_MT5 = {
    "vocab_size": 250112,
    "d_ff": 1024,
    "num_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
}


@dataclasses.dataclass(frozen=True)
class T5Config(Config, label="T5 config", only={"model_type": one_of("t5", "mt5")}, ignored=("*",)):
    """The shape of an encoder, in the names and with the defaults of transformers.

    Attributes:
        vocab_size: rows of the embedding.
        d_model: width of the tokens.
        d_kv: size of a head; heads times it need not be the width.
        d_ff: width inside the MLP.
        num_layers: layers of the encoder.
        num_heads: heads.
        relative_attention_num_buckets: number of distance classes, both directions together.
        relative_attention_max_distance: distances from here on share one bucket.
        layer_norm_epsilon: eps of every norm.
        feed_forward_proj: "relu", or "gated-gelu": gelu(wi_0 x) * (wi_1 x) with the tanh
            approximation.
    """

    vocab_size: int = field(COUNT, 32128)
    d_model: int = field(COUNT, 512)
    d_kv: int = field(COUNT, 64)
    d_ff: int = field(COUNT, 2048)
    num_layers: int = field(COUNT, 6)
    num_heads: int = field(COUNT, 8)
    relative_attention_num_buckets: int = field(COUNT, 32)
    relative_attention_max_distance: int = field(COUNT, 128)
    layer_norm_epsilon: float = field(NUMBER, 1e-6)
    feed_forward_proj: str = field(one_of(*_ACTIVATIONS), "relu")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "T5Config":
        """The config in a checkpoint's config.json, with the defaults of its model_type."""
        defaults = _MT5 if values.get("model_type") == "mt5" else {}
        return super().from_dict({**defaults, **values})

    def misfits(self) -> list[str]:
        """Each direction needs a bucket for one distance and a bucket for several."""
        half = self.relative_attention_num_buckets // 2
        if half >= 2 and self.relative_attention_max_distance > half // 2:
            return []
        return [
            "expected relative_attention_num_buckets of at least 4 and a "
            "relative_attention_max_distance above a quarter of them, got "
            f"{self.relative_attention_num_buckets} and {self.relative_attention_max_distance}"
        ]

    @property
    def hidden_size(self) -> int:
        """Width of the tokens."""
        return self.d_model

    @property
    def longest(self) -> None:
        """None: positions are relative, so prompts may have any length."""
        return None

    def to_transformers(self) -> tuple[str, dict[str, Any]]:
        """The transformers class of this tower, and its config.json."""
        return "T5EncoderModel", {"model_type": "t5", **dataclasses.asdict(self)}


class T5Encoder(nnx.Module):
    """Token ids -> hidden states; each token attends to all tokens that are not masked.

    T5 was trained in bfloat16, which has the range of float32, and the residual stream exceeds the
    range of float16. With a `dtype` of float16, the residual stream and the norms that read it are
    in float32. So are the MLPs' `wo` and its parameters, as in transformers.
    """

    def __init__(
        self,
        config: T5Config,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
    ):
        leaf = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        self.config = config
        self.dtype = dtype
        self.shared = nnx.Embed(config.vocab_size, config.d_model, **leaf | {"dtype": _wide(dtype)})
        blocks = [_Block(config, index == 0, **leaf) for index in range(config.num_layers)]
        self.encoder = nnx.Dict(block=nnx.List(blocks), final_layer_norm=_norm(config, **leaf))

    def __call__(self, ids: Int[Array, "B L"], mask: Mask = None) -> TextOutput:
        """Encode prompts.

        Args:
            ids: [B, L].
            mask: [B, L], nonzero for tokens that are attended to; None for all of them. In a fully
                masked prompt every token gets the mean of all values.

        Returns:
            tokens [B, L, D] after the final norm; pooled is None; hidden_states before that norm.
        """
        blocks = self.encoder.block
        bias = blocks[0].layer[0].SelfAttention.bias(ids.shape[1])
        hidden_states = run_layers(blocks, self.shared(ids), bias, key_mask(mask))
        tokens = self.encoder.final_layer_norm(hidden_states[-1]).astype(self.dtype)
        return TextOutput(tokens=tokens, pooled=None, hidden_states=hidden_states)


class _Block(nnx.Module):
    """x += SelfAttention(norm x);  x += DenseReluDense(norm x).

    The blocks share the bias of the first one's attention.
    """

    def __init__(self, config: T5Config, first: bool, **leaf):
        self.layer = nnx.List(
            [
                nnx.Dict(
                    SelfAttention=_Attention(config, first, **leaf),
                    layer_norm=_norm(config, **leaf),
                ),
                nnx.Dict(
                    DenseReluDense=_FeedForward(config, **leaf),
                    layer_norm=_norm(config, **leaf),
                ),
            ]
        )

    def __call__(
        self,
        x: Float[Array, "B L D"],
        bias: Float[Array, "1 N L L"],
        visible: Bool[Array, "B 1 1 L"] | None,
    ) -> Float[Array, "B L D"]:
        attention, feed_forward = self.layer
        x = x + attention.SelfAttention(attention.layer_norm(x), bias, visible)
        return x + feed_forward.DenseReluDense(feed_forward.layer_norm(x))


class _Attention(nnx.Module):
    """softmax(q k^T + bias) v: no scale, and the only bias is that of relative positions."""

    def __init__(self, config: T5Config, first: bool, **leaf):
        inner = config.num_heads * config.d_kv
        self.config = config
        self.q = nnx.Linear(config.d_model, inner, use_bias=False, **leaf)
        self.k = nnx.Linear(config.d_model, inner, use_bias=False, **leaf)
        self.v = nnx.Linear(config.d_model, inner, use_bias=False, **leaf)
        self.o = nnx.Linear(inner, config.d_model, use_bias=False, **leaf)
        if first:
            self.relative_attention_bias = nnx.Embed(
                config.relative_attention_num_buckets,
                config.num_heads,
                **leaf | {"dtype": jnp.float32},  # the type of the logits
            )

    def bias(self, length: int) -> Float[Array, "1 N L L"]:
        """The term added to the logits of query i and key j, by their distance j - i."""
        buckets = jnp.asarray(_buckets(length, self.config))
        return self.relative_attention_bias(buckets).transpose(2, 0, 1)[None]

    def __call__(
        self,
        x: Float[Array, "B L D"],
        bias: Float[Array, "1 N L L"],
        visible: Bool[Array, "B 1 1 L"] | None,
    ) -> Float[Array, "B L D"]:
        query, key, value = self.q(x), self.k(x), self.v(x)
        options = {"heads": self.config.num_heads, "mask": visible, "bias": bias, "scale": 1.0}
        return self.o(multi_head_attention(query, key, value, **options))


def _buckets(length: int, config: T5Config) -> Int[np.ndarray, "L L"]:
    """The bucket of the distance from query i to key j, [i, j]; j > i has the upper half."""
    half = config.relative_attention_num_buckets // 2
    of_size = np.array([_bucket(size, half, config) for size in range(length)])
    distances = np.arange(length)[None] - np.arange(length)[:, None]
    return of_size[np.abs(distances)] + np.where(distances > 0, half, 0)


def _bucket(size: int, half: int, config: T5Config) -> int:
    """The bucket of a distance in one direction, which has `half` buckets.

    With exact = half // 2 and n = half - exact:

        size                                                                    if size < exact
        min(exact + floor(n log(size / exact) / log(greatest / exact)), half - 1)     otherwise

    The floor is computed in integers: step k is passed if size^n exact^k >= greatest^k exact^n. A
    logarithm with an error in its last bit, as on some accelerators, would move whole distances
    (16, 32 and 64 in the published models) one bucket down.
    """
    exact, greatest = half // 2, config.relative_attention_max_distance
    if size < exact:
        return size
    steps = half - exact
    passed = (size**steps * exact**k >= greatest**k * exact**steps for k in range(1, steps))
    return exact + sum(passed)


class _FeedForward(nnx.Module):
    """wo(activation(wi x)), or wo(activation(wi_0 x) * wi_1 x) where it is gated."""

    def __init__(self, config: T5Config, **leaf):
        widths = config.d_model, config.d_ff
        self.gated = config.feed_forward_proj.startswith("gated")
        self.activation = _ACTIVATIONS[config.feed_forward_proj]
        if self.gated:
            self.wi_0 = nnx.Linear(*widths, use_bias=False, **leaf)
            self.wi_1 = nnx.Linear(*widths, use_bias=False, **leaf)
        else:
            self.wi = nnx.Linear(*widths, use_bias=False, **leaf)
        wide = {key: _wide(leaf[key]) for key in ("dtype", "param_dtype")}
        self.wo = nnx.Linear(*reversed(widths), use_bias=False, **leaf | wide)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        if self.gated:
            return self.wo(self.activation(self.wi_0(x)) * self.wi_1(x))
        return self.wo(self.activation(self.wi(x)))


def _norm(config: T5Config, *, dtype: DTypeLike, **leaf) -> nnx.RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight, computed in float32 and rounded to `dtype` at the end."""
    return nnx.RMSNorm(
        config.d_model, epsilon=config.layer_norm_epsilon, dtype=_wide(dtype), **leaf
    )


def _wide(dtype: DTypeLike) -> DTypeLike:
    """`dtype`, but float32 instead of float16; see `T5Encoder`."""
    return jnp.float32 if jnp.dtype(dtype) == jnp.float16 else dtype
