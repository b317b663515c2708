"""BERT, RoBERTa and XLM-R by themselves: exact sizes, configs, positions. Numbers: tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pea_jax.models.text.bert import Bert, BertConfig
from pea_jax.weights.builtin_configs import read_config
from pea_jax.weights.names import key_of
from tests.models.random_module import random_module
from tests.models.text.configs import BERT_CHINESE, CHINESE_CLIP_H, ROBERTA_BASE, XLM_R_BASE

XLM_R = read_config("xlm-roberta-large/config.json")

TINY = {
    **XLM_R,
    "hidden_size": 8,
    "intermediate_size": 12,
    "max_position_embeddings": 9,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 20,
}


def build(config: dict) -> Bert:
    return Bert(BertConfig.from_dict(config), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def encode():
    graph, state = nnx.split(random_module(lambda: build(TINY)))
    run = jax.jit(lambda state, ids, mask: nnx.merge(graph, state)(ids, mask))
    return lambda ids, mask: run(state, jnp.asarray(ids), jnp.asarray(mask))


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        # transformers' counts without the pooler, which is not part of a text tower
        (XLM_R, 558_840_832),
        (XLM_R_BASE, 277_453_056),
        (ROBERTA_BASE, 124_055_040),
        (BERT_CHINESE, 101_677_056),
        (CHINESE_CLIP_H, 324_472_832),
    ],
    ids=["xlm-r-large", "xlm-r-base", "roberta-base", "bert-base-chinese", "chinese-clip-h"],
)
def test_published_parameter_counts(config, parameters):
    """A count that is off means a layer, bias or width that differs from the published model."""
    state = nnx.state(nnx.eval_shape(lambda: build(config)))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == parameters


def test_keys_are_those_of_the_bare_model():
    flat = nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: build(XLM_R))))
    keys = {key_of(path) for path, _ in flat}
    assert len(keys) == 5 + 24 * 16
    assert keys >= {
        "embeddings.word_embeddings.weight",
        "embeddings.token_type_embeddings.weight",
        "embeddings.LayerNorm.bias",
        "encoder.layer.23.attention.self.query.weight",
        "encoder.layer.0.attention.output.LayerNorm.weight",
        "encoder.layer.0.intermediate.dense.bias",
        "encoder.layer.0.output.dense.weight",
    }


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "t5"}, "model_type: expected 'bert' or .*got 't5'"),
        ({"hidden_act": "gelu_new"}, "hidden_act: expected 'gelu', got 'gelu_new'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder: expected False, got True"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"hidden_size": 9}, r"hidden_size: expected a multiple of num_attention_heads \(2\)"),
        ({"vocab_size": None}, "vocab_size: missing"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: expected a positive integer, got 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_unsupported_values_name_themselves(change, named):
    """If one were ignored, the encoder would differ from the checkpoint's."""
    with pytest.raises(ValueError, match=named):
        BertConfig.from_dict({**TINY, **change})


def test_all_missing_fields_are_in_one_error():
    with pytest.raises(ValueError, match=r"model_type: missing; vocab_size: missing; hidden_size"):
        BertConfig.from_dict({"hidden_act": "gelu"})


@pytest.mark.parametrize(("kind", "padding"), [("bert", 0), ("roberta", 1), ("xlm-roberta", 1)])
def test_defaults_are_those_of_transformers(kind, padding):
    """Configs leave out the defaults of their kind, and RoBERTa's positions depend on one."""
    sizes = {key: TINY[key] for key in TINY if key not in ("pad_token_id", "layer_norm_eps")}
    config = BertConfig.from_dict({**sizes, "model_type": kind})
    assert (config.pad_token_id, config.layer_norm_eps) == (padding, 1e-12)


@pytest.mark.parametrize(("kind", "longest"), [("bert", 9), ("roberta", 7), ("xlm-roberta", 7)])
def test_too_long_a_prompt_is_refused(kind, longest):
    """Longer prompts would get NaN; RoBERTa reserves two rows of the position embeddings."""
    config = {**TINY, "model_type": kind}
    assert BertConfig.from_dict(config).longest == longest
    with pytest.raises(ValueError, match=f"{kind}: expected at most {longest} tokens, got 10"):
        nnx.eval_shape(lambda: build(config)(jnp.zeros((1, 10), jnp.int32)))


def test_padding_changes_nothing(encode):
    """More padding, or other ids under the mask, do not change the real tokens."""
    ids = np.array([[0, 5, 6, 2, 1, 1]])
    mask = np.array([[1, 1, 1, 1, 0, 0]])
    want = encode(ids, mask).tokens[:, :4]
    shorter = encode(ids[:, :4], mask[:, :4]).tokens
    np.testing.assert_allclose(shorter, want, rtol=1e-5, atol=1e-6)
    other = np.array([[0, 5, 6, 2, 7, 8]])
    np.testing.assert_array_equal(encode(other, mask).tokens[:, :4], want)
    assert np.abs(encode(other, np.ones_like(mask)).tokens[:, :4] - want).max() > 1e-3
