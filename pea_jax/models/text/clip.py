"""The text tower of CLIP, as transformers has it (CLIPTextModel).

Source: Radford et al. 2021 (arXiv 2103.00020), section 2.4. The keys are those of the published
checkpoints: text_model.embeddings.*, text_model.encoder.layers.*, text_model.final_layer_norm.*.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from pea_jax.models.attention.core import multi_head_attention
from pea_jax.models.blocks import layer_norm
from pea_jax.models.text.towers import Mask, TextOutput, key_mask, run_layers
from pea_jax.runtime.config_fields import COUNT, FLAG, NUMBER, TOKEN_ID, Config, field, one_of

#: The eos_token_id of every config before transformers 4.31, whatever the tokenizer's id was.
LEGACY_EOS = 2


_ACTIVATIONS: dict[str, Callable] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI CLIP's approximation
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}


def text_config(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text tower's part of a whole CLIP's config.json; the config of a tower unchanged.

    A whole CLIP nests it in "text_config". If there is also a "text_config_dict", it is used
    instead, and the defaults fill its gaps, as in transformers.
    """
    for key in ("text_config_dict", "text_config"):
        if values.get(key) is not None:
            return {**values[key], "model_type": values.get("model_type")}
    return values


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig(
    Config,
    label="CLIP text config",
    only={"model_type": one_of("clip", "clip_text_model")},
    ignored=("*",),
):
    """The shape of a CLIP text tower, in the names and with the defaults of transformers.

    Attributes:
        vocab_size: rows of the token embedding.
        hidden_size: width of the tokens.
        intermediate_size: width inside the MLP.
        num_hidden_layers: layers.
        num_attention_heads: heads; they divide the width.
        max_position_embeddings: the longest prompt, in tokens.
        hidden_act: "quick_gelu", or "gelu" for the exact one.
        layer_norm_eps: eps of every layer norm.
        eos_token_id: token at which the pooled vector is taken; 2 marks a config from before
            transformers 4.31 and stands for the highest id of the prompt.
        projection_dim: width of the text projection, where a checkpoint has one.
        use_attention_mask: whether the diffusion model was trained with padding masked. Otherwise
            diffusers passes no mask to this tower. Stable Diffusion's configs do not set it.
    """

    vocab_size: int = field(COUNT, 49408)
    hidden_size: int = field(COUNT, 512, multiple_of="num_attention_heads")
    intermediate_size: int = field(COUNT, 2048)
    num_hidden_layers: int = field(COUNT, 12)
    num_attention_heads: int = field(COUNT, 8)
    max_position_embeddings: int = field(COUNT, 77)
    hidden_act: str = field(one_of(*_ACTIVATIONS), "quick_gelu")
    layer_norm_eps: float = field(NUMBER, 1e-5)
    eos_token_id: int = field(TOKEN_ID, 49407)
    projection_dim: int | None = 512  # checked where the projection is used
    use_attention_mask: bool = field(FLAG, False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CLIPTextConfig":
        """The config in a checkpoint's config.json, of the tower alone or of a whole CLIP."""
        return super().from_dict(text_config(values))

    @property
    def longest(self) -> int:
        """The longest prompt, in tokens."""
        return self.max_position_embeddings

    def to_transformers(self) -> tuple[str, dict[str, Any]]:
        """The transformers class of this tower, and its config.json."""
        return "CLIPTextModel", {"model_type": "clip_text_model", **dataclasses.asdict(self)}


class CLIPText(nnx.Module):
    """Token ids -> hidden states, and that of the end-of-text token as the pooled vector.

    Args:
        config: the sizes.
        projected: whether the pooled vector goes through `text_projection`, a matrix without bias
            (CLIPTextModelWithProjection, SDXL's second tower).
        rngs: random keys for the parameters.
        dtype: compute type.
        param_dtype: type of the parameters.

    Raises:
        ValueError: `projected` without a projection_dim in the config.
    """

    def __init__(
        self,
        config: CLIPTextConfig,
        *,
        projected: bool = False,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
    ):
        if projected and (expected := COUNT(got := config.projection_dim)):
            raise ValueError(f"{config.label}: projection_dim: expected {expected}, got {got!r}")
        leaf = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        self.config = config
        self.projected = projected
        width = config.hidden_size
        layers = config.num_hidden_layers
        self.text_model = nnx.Dict(
            embeddings=nnx.Dict(
                token_embedding=nnx.Embed(config.vocab_size, width, **leaf),
                position_embedding=nnx.Embed(config.max_position_embeddings, width, **leaf),
            ),
            encoder=nnx.Dict(layers=nnx.List([_Layer(config, **leaf) for _ in range(layers)])),
            final_layer_norm=layer_norm(width, config.layer_norm_eps, **leaf),
        )
        if projected:
            self.text_projection = nnx.Linear(width, config.projection_dim, use_bias=False, **leaf)

    def __call__(self, ids: Int[Array, "B L"], mask: Mask = None) -> TextOutput:
        """Encode prompts.

        Args:
            ids: [B, L], L at most max_position_embeddings.
            mask: [B, L], nonzero for tokens that are attended to, in addition to the causal mask.
                None for all of them, as Stable Diffusion was trained (see `use_attention_mask`). A
                token that can attend to nothing gets the mean of all values.

        Returns:
            tokens [B, L, D] after the final layer norm; pooled, the one at the end-of-text token,
            [B, D], or [B, projection_dim] if projected; hidden_states before that norm.

        Raises:
            ValueError: the prompts are longer than the position embeddings.
        """
        length, longest = ids.shape[1], self.config.max_position_embeddings
        if length > longest:
            raise ValueError(f"CLIP text: expected at most {longest} tokens, got {length}")
        embeddings = self.text_model.embeddings
        x = embeddings.token_embedding(ids)
        x = x + embeddings.position_embedding(jnp.arange(length)[None])
        hidden_states = run_layers(self.text_model.encoder.layers, x, key_mask(mask))
        tokens = self.text_model.final_layer_norm(hidden_states[-1])
        end = _end_of_text(ids, self.config.eos_token_id)
        pooled = jnp.take_along_axis(tokens, end[:, None, None], axis=1)[:, 0]
        if self.projected:
            pooled = self.text_projection(pooled)
        return TextOutput(tokens=tokens, pooled=pooled, hidden_states=hidden_states)


def _end_of_text(ids: Int[Array, "B L"], eos_token_id: int) -> Int[Array, "B"]:
    """The first position of the end-of-text token; 0 where a prompt has none.

    With the legacy id it is the first position of the prompt's highest id, because the end of text
    is the last entry of OpenAI's vocabulary.
    """
    if eos_token_id == LEGACY_EOS:
        return jnp.argmax(ids, axis=-1)
    return jnp.argmax(ids == eos_token_id, axis=-1)


class _Layer(nnx.Module):
    """x += self_attn(layer_norm1 x);  x += fc2(activation(fc1(layer_norm2 x))).

    The attention is causal, and every projection has a bias.
    """

    def __init__(self, config: CLIPTextConfig, **leaf):
        width, inner = config.hidden_size, config.intermediate_size
        self.heads = config.num_attention_heads
        self.activation = _ACTIVATIONS[config.hidden_act]
        self.layer_norm1 = layer_norm(width, config.layer_norm_eps, **leaf)
        self.self_attn = nnx.Dict(
            q_proj=nnx.Linear(width, width, **leaf),
            k_proj=nnx.Linear(width, width, **leaf),
            v_proj=nnx.Linear(width, width, **leaf),
            out_proj=nnx.Linear(width, width, **leaf),
        )
        self.layer_norm2 = layer_norm(width, config.layer_norm_eps, **leaf)
        self.mlp = nnx.Dict(
            fc1=nnx.Linear(width, inner, **leaf), fc2=nnx.Linear(inner, width, **leaf)
        )

    def __call__(
        self, x: Float[Array, "B L D"], visible: Bool[Array, "B 1 1 L"] | None
    ) -> Float[Array, "B L D"]:
        attn, mlp, h = self.self_attn, self.mlp, self.layer_norm1(x)
        query, key, value = attn.q_proj(h), attn.k_proj(h), attn.v_proj(h)
        options = {"heads": self.heads, "mask": visible, "causal": True}
        x = x + attn.out_proj(multi_head_attention(query, key, value, **options))
        return x + mlp.fc2(self.activation(mlp.fc1(self.layer_norm2(x))))
