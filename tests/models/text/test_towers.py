"""Concatenated towers."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pea_jax.models.text.t5 import T5Config, T5Encoder
from pea_jax.models.text.towers import ConcatenatedTowers
from tests.models.random_module import random_module


def tower(width: int) -> T5Encoder:
    config = T5Config(vocab_size=16, d_model=width, d_kv=3, d_ff=12, num_layers=1, num_heads=2)
    return random_module(lambda: T5Encoder(config, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("masked", [True, False])
def test_the_shorter_tower_is_padded_with_zeros(masked):
    towers = [tower(8), tower(4)]
    ids = jnp.arange(16).reshape(2, 8)
    mask = jnp.array([[1, 1, 1, 1, 0, 1, 1, 0]] * 2) if masked else None
    tokens = ConcatenatedTowers(towers, (5, 3))(ids, mask).tokens
    assert tokens.shape == (2, 5, 12)
    own = [None, None] if mask is None else [mask[:, :5], mask[:, 5:]]
    np.testing.assert_array_equal(tokens[..., :8], towers[0](ids[:, :5], own[0]).tokens)
    np.testing.assert_array_equal(tokens[:, :3, 8:], towers[1](ids[:, 5:], own[1]).tokens)
    np.testing.assert_array_equal(tokens[:, 3:, 8:], 0)


def test_a_wrong_number_of_columns_is_refused():
    towers = ConcatenatedTowers([tower(8), tower(4)], (5, 3))
    with pytest.raises(ValueError, match=r"ids of 5 \+ 3 columns, got 7"):
        towers(jnp.zeros((1, 7), int))
    with pytest.raises(ValueError, match=r"a length a tower \(2\), got 1"):
        ConcatenatedTowers([tower(8), tower(4)], (5,))
