"""ruCLIP's files other than its vocabulary: OpenAI's key names and a config.json of its own.

Source: ruclip/model.py of https://github.com/ai-forever/ru-clip. The text tower is CLIP's.
"""

from collections.abc import Mapping
from typing import Any

from pea_jax.models.text.clip import CLIPTextConfig
from pea_jax.weights import names

ALIASES: names.Aliases = (
    (r"^token_embedding\.", "embeddings.token_embedding."),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"^(encoder\.layers\.\d+\.)ln_([12])\.", r"\1layer_norm\2."),
    (r"^(encoder\.layers\.\d+\.)attn\.", r"\1self_attn."),
    (r"^(encoder\.layers\.\d+\.mlp\.)c_fc\.", r"\1fc1."),
    (r"^(encoder\.layers\.\d+\.mlp\.)c_proj\.", r"\1fc2."),
    (r"^ln_final\.", "final_layer_norm."),
)

#: The three projections of an attention are one tensor.
STACKS: names.Stacks = (
    (
        r"^(transformer\..*\.attn\.)in_proj_(weight|bias)$",
        [rf"\1{part}_proj.\2" for part in "qkv"],
    ),
)

#: Our fields -> those of its config.json.
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "transformer_width",
    "num_hidden_layers": "transformer_layers",
    "num_attention_heads": "transformer_heads",
    "max_position_embeddings": "context_length",
}


def is_config(values: Mapping[str, Any]) -> bool:
    """Whether a config.json is ruCLIP's."""
    return values.get("model_type") is None and "transformer_width" in values


def read_config(values: Mapping[str, Any]) -> CLIPTextConfig:
    """The shape of the text tower.

    Raises:
      ValueError: sizes that are missing, or a value that is not supported.
    """
    missing = [field for field in _FIELDS.values() if type(values.get(field)) is not int]
    if missing:
        raise ValueError(f"ruCLIP config: expected numbers {', '.join(missing)}, got none")
    sizes = {name: values[field] for name, field in _FIELDS.items()}
    inner = 4 * sizes["hidden_size"]
    return CLIPTextConfig.from_dict(
        {**sizes, "intermediate_size": inner, "hidden_act": "quick_gelu", "eos_token_id": 3}
    )
