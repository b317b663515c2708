"""The attention core against the formula in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from pea_jax.models.attention import dot_product_attention


def expected(query, key, value, allowed=None):
    """softmax(q k^T / sqrt(K)) v, with exp taken over the allowed keys alone."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    logits = np.einsum("bqnk,blnk->bnql", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    if allowed is not None:
        weights = weights * allowed
    return np.einsum("bnql,blnk->bqnk", weights / weights.sum(axis=-1, keepdims=True), value)


def inputs(rng, queries=5, keys=7, dtype=jnp.float32, spread=1.0):
    shapes = (2, queries, 3, 4), (2, keys, 3, 4), (2, keys, 3, 4)
    query, key, value = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)
    return query * spread, key * spread, value


def test_cross_attention(rng):
    """Queries and keys of different lengths; a wrong scale or axis shows at once."""
    query, key, value = inputs(rng)
    np.testing.assert_allclose(
        dot_product_attention(query, key, value), expected(query, key, value), atol=1e-6
    )


@pytest.mark.parametrize("shape", [(2, 1, 1, 7), (1, 1, 5, 7), (2, 3, 5, 7)])
def test_mask(rng, shape):
    """Masks broadcast over batch, heads and queries, and hide a key wholly."""
    query, key, value = inputs(rng)
    mask = rng.random(shape) < 0.6
    mask[..., 2] = True  # a query with no key at all has no defined output
    got = dot_product_attention(query, key, value, mask=jnp.asarray(mask))
    np.testing.assert_allclose(got, expected(query, key, value, mask), atol=1e-6)


def test_causal_and_masked(rng):
    """Both limits hold together, as in a padded CLIP prompt."""
    query, key, value = inputs(rng, queries=6, keys=6)
    mask = np.arange(6) < np.array([6, 4])[:, None, None, None]
    got = dot_product_attention(query, key, value, mask=jnp.asarray(mask), causal=True)
    allowed = np.tril(np.ones((6, 6), bool)) & mask
    np.testing.assert_allclose(got, expected(query, key, value, allowed), atol=1e-6)


def test_bias_and_scale(rng):
    """T5's attention: logits that are not scaled, and a bias of each head on them."""
    query, key, value = inputs(rng)
    bias = jnp.asarray(rng.standard_normal((1, 3, 5, 7)), jnp.float32)
    mask = np.arange(7) < 5
    got = dot_product_attention(
        query, key, value, bias=bias, scale=1.0, mask=mask[None, None, None]
    )
    logits = np.einsum("bqnk,blnk->bnql", *(np.asarray(x, np.float64) for x in (query, key)))
    weights = np.exp(logits + np.asarray(bias)) * mask
    want = np.einsum("bnql,blnk->bqnk", weights / weights.sum(axis=-1, keepdims=True), value)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_softmax_is_in_float32(rng):
    """Logits in the hundreds keep their fractions, of which bfloat16 has none left."""
    query, key, value = inputs(rng, dtype=jnp.bfloat16, spread=14.0)
    got = dot_product_attention(query, key, value)
    assert got.dtype == jnp.bfloat16
    want = expected(*(x.astype(jnp.float32) for x in (query, key, value)))
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.02)


def test_unknown_implementation_names_itself(rng):
    with pytest.raises(ValueError, match=r"expected one of \('xla',\), got 'flash'"):
        dot_product_attention(*inputs(rng), implementation="flash")
