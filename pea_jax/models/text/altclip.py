"""AltCLIP's text tower, as transformers has it (AltCLIPTextModel): XLM-R with a projection.

Source: Chen et al. 2022 (arXiv 2211.06679), section 3.1. The keys are those of the published
checkpoints: text_model.roberta.*, text_model.pre_LN.*, text_model.transformation.*.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from pea_jax.models.blocks import layer_norm
from pea_jax.models.text.bert import Bert, BertConfig
from pea_jax.models.text.clip import text_config
from pea_jax.models.text.towers import Mask, TextOutput
from pea_jax.runtime.config_fields import COUNT, Config, field, one_of

#: The defaults of transformers' AltCLIPTextConfig: XLM-R large.
_DEFAULTS = {
    "vocab_size": 250002,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "project_dim": 768,
}


@dataclasses.dataclass(frozen=True)
class AltCLIPTextConfig(
    Config,
    label="AltCLIP config",
    only={"model_type": one_of("altclip", "altclip_text_model")},
    ignored=("*",),
):
    """The shape of AltCLIP's text tower.

    Attributes:
        roberta: the config of its XLM-R.
        project_dim: width of the tokens.
    """

    roberta: BertConfig
    project_dim: int = field(COUNT)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "AltCLIPTextConfig":
        """The config in a checkpoint's config.json, of the tower alone or of a whole AltCLIP.

        Fields that are left out or null have the defaults of transformers.
        """
        stated = {key: value for key, value in text_config(values).items() if value is not None}
        filled = {"model_type": None, **_DEFAULTS, **stated}
        roberta = BertConfig.from_dict({**filled, "model_type": "xlm-roberta"})
        return super().from_dict({**filled, "roberta": roberta})

    @property
    def hidden_size(self) -> int:
        """Width of the tokens."""
        return self.project_dim

    @property
    def longest(self) -> int:
        """The longest prompt, in tokens."""
        return self.roberta.longest

    def to_transformers(self) -> tuple[str, dict[str, Any]]:
        """The transformers class of this tower, and its config.json."""
        values = dataclasses.asdict(self)
        values |= values.pop("roberta") | {"model_type": "altclip_text_model"}
        return "AltCLIPTextModel", values


class AltCLIPText(nnx.Module):
    """Token ids -> transformation(pre_LN(XLM-R)) for every token."""

    def __init__(
        self,
        config: AltCLIPTextConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
    ):
        leaf = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        width = config.roberta.hidden_size
        self.config = config
        self.text_model = nnx.Dict(
            roberta=Bert(config.roberta, **leaf),
            pre_LN=layer_norm(width, config.roberta.layer_norm_eps, **leaf),
            transformation=nnx.Linear(width, config.project_dim, **leaf),
        )

    def __call__(self, ids: Int[Array, "B L"], mask: Mask = None) -> TextOutput:
        """Encode prompts.

        Args:
            ids: [B, L], L at most `config.longest`.
            mask: [B, L], nonzero for tokens that are attended to; None for all of them. In a fully
                masked prompt every token gets the mean of all values.

        Returns:
            tokens [B, L, project_dim], all projected; pooled [B, project_dim], the first token;
            hidden_states of the XLM-R, before the norm and the projection.

        Raises:
            ValueError: the prompts are longer than the position embeddings.
        """
        parts = self.text_model
        output = parts.roberta(ids, mask)
        tokens = parts.transformation(parts.pre_LN(output.tokens))
        return TextOutput(tokens, pooled=tokens[:, 0], hidden_states=output.hidden_states)
