"""T5's encoder: its shape, its buckets, its mask. The values are compared in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pea_jax.models.text import t5
from pea_jax.models.text.t5 import T5Config, T5Encoder
from pea_jax.weights.builtin_configs import read_config
from pea_jax.weights.names import key_of
from tests.models.random_module import random_module

MT5 = read_config("mt5-xl/config.json")

TINY = T5Config(vocab_size=16, d_model=8, d_kv=3, d_ff=12, num_layers=2, num_heads=2)


def build(config: T5Config = TINY, dtype=jnp.float32) -> T5Encoder:
    return T5Encoder(config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=dtype)


def test_mt5_xl_has_as_many_parameters_as_published():
    config = T5Config.from_dict(MT5)
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
        ({"relative_attention_num_buckets": 3}, "buckets of at least 4 .* got 3 and 128"),
        ({"relative_attention_max_distance": 8}, "distance above a quarter of them, got 32 and 8"),
    ],
)
def test_unsupported_values_name_themselves(changes, problem):
    with pytest.raises(ValueError, match=problem):
        T5Config.from_dict(changes)


def test_buckets():
    """Computed by hand for 8 buckets up to a distance of 8: 0, 1, then 2 for 2 and 3, 3 from 4 on;
    later keys start at 4.
    """
    config = T5Config(relative_attention_num_buckets=8, relative_attention_max_distance=8)
    buckets = t5._buckets(101, config)
    first = [0, 5, 6, 6, 7, *[7] * 96]  # query 0 and the later keys
    np.testing.assert_array_equal(buckets[0], first)
    np.testing.assert_array_equal(buckets[:, 0], [0, 1, 2, 2, 3, *[3] * 96])
    np.testing.assert_array_equal(buckets[4, :7], [3, 2, 2, 1, 0, 5, 6])


def test_keys_are_those_of_the_published_files():
    """Only the first block has the position bias."""
    flat = nnx.to_flat_state(nnx.state(nnx.eval_shape(build)))
    block = "encoder.block.{}.layer."
    parts = ["0.layer_norm", "1.layer_norm", *(f"0.SelfAttention.{part}" for part in "qkvo")]
    parts += ["1.DenseReluDense.wi", "1.DenseReluDense.wo"]
    expected = {f"{block.format(i)}{part}.weight" for i in range(2) for part in parts}
    expected |= {"shared.weight", "encoder.final_layer_norm.weight"}
    expected |= {f"{block.format(0)}0.SelfAttention.relative_attention_bias.weight"}
    assert {key_of(path) for path, _ in flat} == expected


def test_float16_does_not_overflow():
    """The residual stream exceeds 65504 here, as with T5's published weights."""
    model = random_module(build)
    for block in model.encoder.block:
        kernel = block.layer[1].DenseReluDense.wo.kernel
        kernel[...] = kernel[...] * 600_000
    half = nnx.merge(
        nnx.graphdef(nnx.eval_shape(lambda: build(dtype=jnp.float16))), nnx.state(model)
    )
    ids = jnp.array([[3, 4, 5, 1]])
    got, want = half(ids), model(ids)
    assert np.abs(want.hidden_states[-1]).max() > 2 * float(np.finfo(np.float16).max)
    assert got.tokens.dtype == jnp.float16
    np.testing.assert_allclose(got.tokens, want.tokens, atol=0.01 * np.abs(want.tokens).max())


@pytest.mark.parametrize(("dtype", "wide"), [(jnp.float16, jnp.float32), (jnp.bfloat16, None)])
def test_parameters_in_float32_despite_16_bits(dtype, wide):
    """With float16 the wo of every block, as in transformers; with bfloat16 none."""
    flat = nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: build(dtype=dtype))))
    kept = {key_of(path) for path, variable in flat if variable.dtype != dtype}
    assert all(variable.dtype in (dtype, wide) for _, variable in flat)
    wo = {f"encoder.block.{i}.layer.1.DenseReluDense.wo.weight" for i in range(2)}
    assert kept == (set() if wide is None else wo)


def test_masked_tokens_have_no_effect():
    model = random_module(lambda: T5Encoder(TINY, rngs=nnx.Rngs(0)))
    ids = jnp.array([[3, 4, 5, 1, 0, 0]])
    mask = jnp.array([[1, 1, 1, 1, 0, 0]])
    tokens = model(ids, mask).tokens
    others = model(ids.at[0, 4:].set(7), mask).tokens
    np.testing.assert_array_equal(tokens[:, :4], others[:, :4])
    assert not np.allclose(tokens[:, :4], model(ids).tokens[:, :4])
    assert len(model(ids).hidden_states) == 3


def test_a_prompt_of_only_padding_is_finite():
    model = random_module(lambda: T5Encoder(TINY, rngs=nnx.Rngs(0)))
    assert np.isfinite(model(jnp.zeros((1, 6), int), jnp.zeros((1, 6), int)).tokens).all()
