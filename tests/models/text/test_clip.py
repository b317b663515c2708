"""CLIP's text tower by itself: exact sizes, its config, its pooling. Numbers: tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pea_jax.models.text.clip import CLIPText, CLIPTextConfig
from pea_jax.weights.builtin_configs import read_config
from pea_jax.weights.names import key_of
from tests.models.random_module import random_module

CLIP_L = read_config("sdxl/text_encoder/config.json")
CLIP_H = read_config("sd21/text_encoder/config.json")
CLIP_BIG_G = read_config("sdxl/text_encoder_2/config.json")

TINY = {
    **CLIP_L,
    "hidden_size": 8,
    "intermediate_size": 12,
    "max_position_embeddings": 6,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 20,
}


def build(config: dict, projected: bool = False) -> CLIPText:
    return CLIPText(CLIPTextConfig.from_dict(config), projected=projected, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def encode():
    """The tiny tower, compiled, with the legacy end-of-text id or its own."""
    graphs = {
        eos: nnx.split(random_module(lambda eos=eos: build({**TINY, "eos_token_id": eos})))
        for eos in (2, 9)
    }
    run = jax.jit(lambda graph, state, *x: nnx.merge(graph, state)(*x), static_argnums=0)
    return lambda ids, mask=None, eos=2: run(*graphs[eos], jnp.asarray(ids), mask)


@pytest.mark.parametrize(
    ("config", "projected", "parameters"),
    [
        (CLIP_L, False, 123_060_480),
        (CLIP_H, False, 340_387_840),
        (CLIP_BIG_G, False, 693_021_440),
        (CLIP_BIG_G, True, 694_659_840),
    ],
    ids=["L/14", "H/14", "bigG/14", "bigG/14 projected"],
)
def test_published_parameter_counts(config, projected, parameters):
    """A count that is off means a layer, bias or width that differs from the published model."""
    state = nnx.state(nnx.eval_shape(lambda: build(config, projected)))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == parameters


def test_keys_are_those_of_the_published_files():
    """Files of Stable Diffusion have the prefix text_model."""
    flat = nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: build(CLIP_L))))
    keys = {key_of(path) for path, _ in flat}
    assert len(keys) == 196
    assert keys >= {
        "text_model.embeddings.token_embedding.weight",
        "text_model.embeddings.position_embedding.weight",
        "text_model.encoder.layers.11.self_attn.out_proj.bias",
        "text_model.encoder.layers.0.layer_norm1.weight",
        "text_model.encoder.layers.0.mlp.fc2.weight",
        "text_model.final_layer_norm.bias",
    }


def test_the_key_of_the_projection():
    """CLIPTextModelWithProjection has one more matrix, without the prefix."""
    own, more = (
        {key_of(path) for path, _ in nnx.to_flat_state(nnx.state(nnx.eval_shape(make)))}
        for make in (lambda: build(TINY), lambda: build(TINY, projected=True))
    )
    assert more - own == {"text_projection.weight"}


def test_a_projection_needs_a_width():
    with pytest.raises(ValueError, match="projection_dim: expected a positive integer, got None"):
        build({**TINY, "projection_dim": None}, projected=True)


def test_config_of_a_whole_clip():
    """openai/clip-vit-large-patch14 nests the tower's config, in two places."""
    nested = {"model_type": "clip", "projection_dim": 1, "text_config": CLIP_L}
    assert CLIPTextConfig.from_dict(nested) == CLIPTextConfig.from_dict(CLIP_L)
    both = {**nested, "text_config_dict": {"hidden_size": 16}}
    assert CLIPTextConfig.from_dict(both) == CLIPTextConfig(hidden_size=16)
    assert CLIPTextConfig.from_dict({**both, "text_config_dict": None}).hidden_size == 768


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "bert"}, "model_type: expected 'clip' or 'clip_text_model', got 'bert'"),
        ({"hidden_act": "gelu_new"}, "hidden_act: expected 'quick_gelu' or 'gelu', got 'gelu_new'"),
        ({"hidden_size": 9}, r"hidden_size: expected a multiple of num_attention_heads \(2\)"),
        ({"eos_token_id": [2, 3]}, r"eos_token_id: expected one id, got \[2, 3\]"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: expected a positive integer, got 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_unsupported_values_name_themselves(change, named):
    """If one were ignored, the tower would differ from the checkpoint's."""
    with pytest.raises(ValueError, match=named):
        CLIPTextConfig.from_dict({**TINY, **change})


def test_too_long_a_prompt_is_refused():
    """jax would return NaN beyond the position embeddings."""
    assert CLIPTextConfig.from_dict(TINY).longest == 6
    with pytest.raises(ValueError, match="at most 6 tokens, got 7"):
        nnx.eval_shape(lambda: build(TINY)(jnp.zeros((1, 7), jnp.int32)))


# 19 is the last entry of the vocabulary, 9 an added end of text, 0 padding
IDS = np.array([[3, 5, 19, 19, 19, 19], [3, 9, 5, 19, 9, 0], [3, 5, 6, 7, 8, 4]])


@pytest.mark.parametrize(("eos", "positions"), [(2, [2, 3, 4]), (9, [0, 1, 0])])
def test_pooled_is_the_end_of_text(encode, eos, positions):
    """The first one. In a config, 2 stands for the highest id, as in transformers."""
    got = encode(IDS, eos=eos)
    np.testing.assert_array_equal(got.pooled, got.tokens[np.arange(3), np.array(positions)])


def test_padding_with_id_0_does_not_change_pooled(encode):
    """SDXL's second tokenizer pads with "!", which is id 0: not an end of text, by either rule."""
    ids = np.array([[3, 5, 19, 0, 0, 0], [3, 0, 6, 7, 0, 19]])
    got = encode(ids)
    np.testing.assert_array_equal(got.pooled, got.tokens[np.arange(2), np.array([2, 5])])
    ids[ids == 19] = 9
    got = encode(ids, eos=9)
    np.testing.assert_array_equal(got.pooled, got.tokens[np.arange(2), np.array([2, 5])])


def test_a_token_does_not_depend_on_later_ones(encode):
    """Without the causal mask the first tokens would change with the last."""
    other = IDS.copy()
    other[:, 4:] = 1
    first, second = encode(IDS).tokens, encode(other).tokens
    np.testing.assert_array_equal(first[:, :4], second[:, :4])
    assert (np.abs(first[:, 4:] - second[:, 4:]).max(axis=(1, 2)) > 1e-3).all()


def test_a_masked_token_has_no_effect(encode):
    """The tokens after it do not depend on a masked token; without a mask they do."""
    mask = jnp.asarray([[1, 0, 1, 1, 1, 1]] * 3)
    other = IDS.copy()
    other[:, 1] = 2
    first, second = encode(IDS, mask).tokens, encode(other, mask).tokens
    np.testing.assert_array_equal(first[:, 2:], second[:, 2:])
    assert np.abs(encode(IDS).tokens[:, 2:] - encode(other).tokens[:, 2:]).max() > 1e-3
