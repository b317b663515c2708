"""T5's encoder: its shape, its buckets, its mask. The values are compared in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pea_jax.models import t5
from pea_jax.models.t5 import T5Config, T5Encoder
from tests.models.random_module import random_module

TINY = T5Config(vocab_size=16, d_model=8, d_kv=3, d_ff=12, num_layers=2, num_heads=2)


def test_mt5_xl_has_as_many_parameters_as_published():
    config = T5Config.from_dict(
        {
            "model_type": "mt5",
            "vocab_size": 250112,
            "d_model": 2048,
            "d_kv": 64,
            "d_ff": 5120,
            "num_layers": 24,
            "num_heads": 32,
            "feed_forward_proj": "gated-gelu",
        }
    )
    state = nnx.state(nnx.eval_shape(lambda: T5Encoder(config, rngs=nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 1_669_958_656
    assert (config.hidden_size, config.longest) == (2048, None)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_type": "umt5"}, "expected 't5' or 'mt5', got 'umt5'"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj: .*got 'gated-silu'"),
        (
            {"num_layers": 0, "d_kv": "4"},
            "d_kv: expected a positive integer, got '4'; num_layers: expected a positive",
        ),
    ],
)
def test_what_is_not_supported_names_itself(changes, problem):
    with pytest.raises(ValueError, match=problem):
        T5Config.from_dict(changes)


def test_buckets():
    """By hand, of 8 buckets up to a distance of 8: 0, 1, then 2 for 2 and 3, 3 from 4 on; those
    ahead begin at 4.
    """
    config = T5Config(relative_attention_num_buckets=8, relative_attention_max_distance=8)
    distances = jnp.array([[0, -1, -2, -3, -4, -7, -100, 1, 2, 3, 4, 100]])
    expected = [[0, 1, 2, 2, 3, 3, 3, 5, 6, 6, 7, 7]]
    np.testing.assert_array_equal(t5._buckets(distances, config), expected)


def test_masked_tokens_are_not_seen():
    model = random_module(lambda: T5Encoder(TINY, rngs=nnx.Rngs(0)))
    ids = jnp.array([[3, 4, 5, 1, 0, 0]])
    mask = jnp.array([[1, 1, 1, 1, 0, 0]])
    tokens = model(ids, mask).tokens
    others = model(ids.at[0, 4:].set(7), mask).tokens
    np.testing.assert_array_equal(tokens[:, :4], others[:, :4])
    assert not np.allclose(tokens[:, :4], model(ids).tokens[:, :4])
    assert len(model(ids).hidden_states) == 3


def test_a_prompt_of_padding_alone_is_finite():
    model = random_module(lambda: T5Encoder(TINY, rngs=nnx.Rngs(0)))
    assert np.isfinite(model(jnp.zeros((1, 6), int), jnp.zeros((1, 6), int)).tokens).all()
