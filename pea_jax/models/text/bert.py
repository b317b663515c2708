"""BERT, RoBERTa and XLM-R encoders, as transformers has them.

One architecture; RoBERTa and XLM-R number the positions differently. Sources: Devlin et al. 2019
(arXiv 1810.04805), Liu et al. 2019 (1907.11692), Conneau et al. 2020 (1911.02116). The keys are
those of the bare model: embeddings.*, encoder.layer.*. The loader drops the prefixes of published
files ("bert.", "roberta."). The heads and the pooler of those files are not part of a text tower.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from pea_jax.models.attention.core import multi_head_attention
from pea_jax.models.blocks import layer_norm
from pea_jax.models.text.towers import Mask, TextOutput, key_mask, run_layers
from pea_jax.runtime.config_fields import COUNT, NUMBER, TOKEN_ID, Config, field, one_of

#: The transformers class of each model_type.
_CLASSES = {"bert": "BertModel", "roberta": "RobertaModel", "xlm-roberta": "XLMRobertaModel"}

#: The padding id of each model_type, for configs without one.
_PADDING = {"bert": 0, "roberta": 1, "xlm-roberta": 1}


#: Fields that change the network, with their only supported values.
_ONLY = {
    "hidden_act": one_of("gelu"),
    "position_embedding_type": one_of("absolute"),
    "is_decoder": one_of(False),
    "add_cross_attention": one_of(False),
}


@dataclasses.dataclass(frozen=True)
class BertConfig(Config, label="BERT config", only=_ONLY, ignored=("*",)):
    """The shape of an encoder, in the names of transformers.

    Attributes:
        model_type: "bert", "roberta" or "xlm-roberta".
        vocab_size: rows of the word embedding.
        hidden_size: width of the tokens.
        num_hidden_layers: layers.
        num_attention_heads: heads; they divide the width.
        intermediate_size: width inside the MLP.
        max_position_embeddings: rows of the position embedding; see `longest`.
        pad_token_id: the padding id, on which RoBERTa's positions depend.
        type_vocab_size: rows of the token type embedding.
        layer_norm_eps: eps of every layer norm.
    """

    model_type: str = field(one_of(*_PADDING))
    vocab_size: int = field(COUNT)
    hidden_size: int = field(COUNT, multiple_of="num_attention_heads")
    num_hidden_layers: int = field(COUNT)
    num_attention_heads: int = field(COUNT)
    intermediate_size: int = field(COUNT)
    max_position_embeddings: int = field(COUNT)
    pad_token_id: int = field(TOKEN_ID)
    type_vocab_size: int = field(COUNT, 2)
    layer_norm_eps: float = field(NUMBER, 1e-12)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BertConfig":
        """The config in a checkpoint's config.json; a field that is null counts as left out."""
        kind = values.get("model_type")
        defaults = {"pad_token_id": _PADDING[kind]} if kind in _PADDING else {}
        fields = {key: v for key, v in values.items() if v is not None or key in _ONLY}
        return super().from_dict(defaults | fields)

    @property
    def first_position(self) -> int:
        """The position of the first token: RoBERTa reserves the rows up to that of padding."""
        return 0 if self.model_type == "bert" else self.pad_token_id + 1

    @property
    def longest(self) -> int:
        """The longest prompt, in tokens: 512 for every published model."""
        return self.max_position_embeddings - self.first_position

    def to_transformers(self) -> tuple[str, dict[str, Any]]:
        """The transformers class of this tower, and its config.json."""
        return _CLASSES[self.model_type], {**dataclasses.asdict(self), "hidden_act": "gelu"}


class Bert(nnx.Module):
    """Token ids -> hidden states; each token attends to all tokens that are not masked."""

    def __init__(
        self,
        config: BertConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
    ):
        leaf = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        width = config.hidden_size
        self.config = config
        self.embeddings = nnx.Dict(
            word_embeddings=nnx.Embed(config.vocab_size, width, **leaf),
            position_embeddings=nnx.Embed(config.max_position_embeddings, width, **leaf),
            token_type_embeddings=nnx.Embed(config.type_vocab_size, width, **leaf),
            LayerNorm=layer_norm(width, config.layer_norm_eps, **leaf),
        )
        layers = nnx.List([_Layer(config, **leaf) for _ in range(config.num_hidden_layers)])
        self.encoder = nnx.Dict(layer=layers)

    def __call__(self, ids: Int[Array, "B L"], mask: Mask = None) -> TextOutput:
        """Encode prompts; each is one segment, of token type 0.

        Args:
            ids: [B, L], L at most `config.longest`.
            mask: [B, L], nonzero for tokens that are attended to; None for all of them. In a fully
                masked prompt every token gets the mean of all values.

        Returns:
            tokens [B, L, D], the last hidden state; pooled is None.

        Raises:
            ValueError: the prompts are longer than the position embeddings.
        """
        if ids.shape[1] > self.config.longest:
            raise ValueError(
                f"{self.config.model_type}: expected at most {self.config.longest} tokens, "
                f"got {ids.shape[1]}"
            )
        parts = self.embeddings
        x = parts.LayerNorm(
            parts.word_embeddings(ids)
            + parts.token_type_embeddings(jnp.zeros_like(ids))
            + parts.position_embeddings(_positions(ids, self.config))
        )
        hidden_states = run_layers(self.encoder.layer, x, key_mask(mask))
        return TextOutput(tokens=hidden_states[-1], pooled=None, hidden_states=hidden_states)


def _positions(ids: Int[Array, "B L"], config: BertConfig) -> Int[Array, "B L"]:
    """BERT: 0, 1, 2, ... RoBERTa: padding has its own id, other tokens count up from there.

    RoBERTa's positions depend on the ids, not on the mask.
    """
    if config.model_type == "bert":
        return jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
    real = (ids != config.pad_token_id).astype(ids.dtype)
    return jnp.cumsum(real, axis=1) * real + config.pad_token_id


class _Layer(nnx.Module):
    """x = LayerNorm(x + dense(attention(x)));  x = LayerNorm(x + dense(gelu(dense(x))))."""

    def __init__(self, config: BertConfig, **leaf):
        width, inner = config.hidden_size, config.intermediate_size
        self.heads = config.num_attention_heads
        projections = nnx.Dict(
            query=nnx.Linear(width, width, **leaf),
            key=nnx.Linear(width, width, **leaf),
            value=nnx.Linear(width, width, **leaf),
        )
        self.attention = nnx.Dict({"self": projections, "output": _Output(width, config, **leaf)})
        self.intermediate = nnx.Dict(dense=nnx.Linear(width, inner, **leaf))
        self.output = _Output(inner, config, **leaf)

    def __call__(
        self, x: Float[Array, "B L D"], visible: Bool[Array, "B 1 1 L"] | None
    ) -> Float[Array, "B L D"]:
        projections = self.attention["self"]
        query, key, value = projections.query(x), projections.key(x), projections.value(x)
        attended = multi_head_attention(query, key, value, heads=self.heads, mask=visible)
        x = self.attention["output"](attended, x)
        return self.output(jax.nn.gelu(self.intermediate.dense(x), approximate=False), x)


class _Output(nnx.Module):
    """LayerNorm(dense(x) + residual)."""

    def __init__(self, in_width: int, config: BertConfig, **leaf):
        self.dense = nnx.Linear(in_width, config.hidden_size, **leaf)
        self.LayerNorm = layer_norm(config.hidden_size, config.layer_norm_eps, **leaf)

    def __call__(
        self, x: Float[Array, "B L I"], residual: Float[Array, "B L D"]
    ) -> Float[Array, "B L D"]:
        return self.LayerNorm(self.dense(x) + residual)
