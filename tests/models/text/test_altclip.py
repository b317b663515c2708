"""AltCLIP's text tower by itself: exact size, its config, its keys. Numbers: tests/parity."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from pea_jax.models.text.altclip import AltCLIPText, AltCLIPTextConfig
from pea_jax.weights.builtin_configs import read_config
from pea_jax.weights.names import key_of

ALT_CLIP = read_config("alt_clip/config.json")

TEXT = ALT_CLIP["text_config"]


def build(config: dict) -> AltCLIPText:
    return AltCLIPText(AltCLIPTextConfig.from_dict(config), rngs=nnx.Rngs(0))


def test_published_parameter_count():
    """XLM-R large without its pooler, the norm and the projection."""
    state = nnx.state(nnx.eval_shape(lambda: build(ALT_CLIP)))
    norm, projection = 2 * 1024, 1024 * 768 + 768
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 559_630_080
    assert 558_840_832 + norm + projection == 559_630_080


def test_keys_are_those_of_the_published_files():
    flat = nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: build(ALT_CLIP))))
    keys = {key_of(path) for path, _ in flat}
    assert len(keys) == 5 + 24 * 16 + 4
    assert keys >= {
        "text_model.roberta.embeddings.word_embeddings.weight",
        "text_model.roberta.encoder.layer.23.attention.self.query.weight",
        "text_model.pre_LN.weight",
        "text_model.pre_LN.bias",
        "text_model.transformation.weight",
        "text_model.transformation.bias",
    }


def test_config():
    """In the config of a whole AltCLIP, with or without a second one, and of the tower alone."""
    config = AltCLIPTextConfig.from_dict(ALT_CLIP)
    assert (config.hidden_size, config.longest) == (768, 512)
    assert AltCLIPTextConfig.from_dict(TEXT) == config
    # transformers writes what differs from the defaults
    assert AltCLIPTextConfig.from_dict({"model_type": "altclip", "text_config": {}}) == config
    both = {**ALT_CLIP, "text_config_dict": {"project_dim": 512}}
    assert AltCLIPTextConfig.from_dict(both).hidden_size == 512


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"model_type": "clip"}, "expected 'altclip' or 'altclip_text_model', got 'clip'"),
        ({**TEXT, "project_dim": 0}, "project_dim: expected a positive integer, got 0"),
        ({**TEXT, "hidden_act": "relu"}, "hidden_act: expected 'gelu', got 'relu'"),
    ],
)
def test_unsupported_values_name_themselves(config, named):
    """If one were ignored, the encoder would differ from the checkpoint's."""
    with pytest.raises(ValueError, match=named):
        AltCLIPTextConfig.from_dict(config)


def test_too_long_a_prompt_is_refused():
    with pytest.raises(ValueError, match="expected at most 512 tokens, got 513"):
        nnx.eval_shape(lambda: build(ALT_CLIP)(jnp.zeros((1, 513), jnp.int32)))
