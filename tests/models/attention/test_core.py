"""The attention core against the formula in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pea_jax.models.attention import splash
from pea_jax.models.attention.core import choose, dot_product_attention


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
    """Masks broadcast over batch, heads and queries, and remove a key completely."""
    query, key, value = inputs(rng)
    mask = rng.random(shape) < 0.6
    mask[..., 2] = True  # a query with no key at all has no defined output
    got = dot_product_attention(query, key, value, mask=jnp.asarray(mask))
    np.testing.assert_allclose(got, expected(query, key, value, mask), atol=1e-6)


def test_causal_and_masked(rng):
    """Both restrictions apply together, as in a padded CLIP prompt."""
    query, key, value = inputs(rng, queries=6, keys=6)
    mask = np.arange(6) < np.array([6, 4])[:, None, None, None]
    got = dot_product_attention(query, key, value, mask=jnp.asarray(mask), causal=True)
    allowed = np.tril(np.ones((6, 6), bool)) & mask
    np.testing.assert_allclose(got, expected(query, key, value, allowed), atol=1e-6)


def test_bias_and_scale(rng):
    """T5's attention: unscaled logits, with a bias per head."""
    query, key, value = inputs(rng)
    bias = jnp.asarray(rng.standard_normal((1, 3, 5, 7)), jnp.float32)
    mask = jnp.arange(7) < 5
    got = dot_product_attention(
        query, key, value, bias=bias, scale=1.0, mask=mask[None, None, None]
    )
    logits = np.einsum("bqnk,blnk->bnql", *(np.asarray(x, np.float64) for x in (query, key)))
    weights = np.exp(logits + np.asarray(bias)) * np.asarray(mask)
    want = np.einsum("bnql,blnk->bqnk", weights / weights.sum(axis=-1, keepdims=True), value)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_softmax_is_in_float32(rng):
    """Logits in the hundreds keep their fractions, which bfloat16 would round away."""
    query, key, value = inputs(rng, dtype=jnp.bfloat16, spread=14.0)
    got = dot_product_attention(query, key, value)
    assert got.dtype == jnp.bfloat16
    want = expected(*(x.astype(jnp.float32) for x in (query, key, value)))
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.02)


def test_unknown_implementation_names_itself(rng):
    with pytest.raises(ValueError, match=r"expected one of \('auto', 'xla', .*\), got 'flash'"):
        dot_product_attention(*inputs(rng), implementation="flash")


def long_inputs(rng, batch=1, heads=2, head_size=40, dtype=jnp.float32, length=2 * splash.BLOCK):
    shape = (3, batch, length, heads, head_size)
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype))


@pytest.mark.parametrize(
    ("length", "head_size", "dtype", "tolerance"),
    [
        (1024, 40, jnp.float32, 1e-5),
        (1024, 160, jnp.float32, 1e-5),
        (1024, 64, jnp.bfloat16, 0.02),
        (600, 64, jnp.float32, 1e-5),  # is padded
    ],
)
def test_splash_and_its_gradient_are_those_of_xla(rng, length, head_size, dtype, tolerance):
    """The kernel applies no scale and has its own gradient: either could be wrong. An unmasked key
    of the padding would take some of the weight."""
    arrays = long_inputs(rng, head_size=head_size, dtype=dtype, length=length)
    weights = jnp.asarray(rng.standard_normal(arrays[0].shape), jnp.float32)

    def loss(attend, *arrays):
        out = attend(*arrays)
        return jnp.sum(out.astype(jnp.float32) * weights), out

    def both(attend):
        run = jax.value_and_grad(functools.partial(loss, attend), (0, 1, 2), has_aux=True)
        (_, out), gradients = jax.jit(run)(*arrays)
        return out, *gradients

    ours = both(functools.partial(splash.splash_attention, interpret=True))
    theirs = both(functools.partial(dot_product_attention, implementation="xla"))
    for got, want in zip(ours, theirs, strict=True):
        got, want = (np.asarray(array.astype(jnp.float32)) for array in (got, want))
        assert np.abs(want).max() > 0.1
        np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())


def test_splash_runs_on_each_device_for_its_own_rows(rng):
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    arrays = long_inputs(rng, batch=4, heads=1)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    spread = jax.device_put(arrays, rows)
    attend = functools.partial(splash.splash_attention, interpret=True)
    got = jax.jit(functools.partial(attend, mesh=mesh))(*spread)
    assert got.sharding.is_equivalent_to(rows, got.ndim)
    np.testing.assert_allclose(got, jax.jit(attend)(*arrays), atol=1e-6)
    with pytest.raises(ValueError, match="expected a batch that 4 devices divide, got 1"):
        splash.splash_attention(*(array[:1] for array in arrays), mesh=mesh)


@pytest.mark.parametrize(
    ("platform", "changes", "chosen"),
    [
        ("tpu", {}, "splash"),
        ("tpu", {"dtype": jnp.float32}, "splash"),
        ("tpu", {"key_length": 77}, "xla"),
        ("tpu", {"query_length": 576, "key_length": 576}, "xla"),
        ("tpu", {"query_length": 1600, "key_length": 1600}, "splash"),
        ("tpu", {"query_length": 512, "key_length": 512}, "xla"),
        ("tpu", {"head_size": 512}, "xla"),
        ("tpu", {"plain": False}, "xla"),
        ("gpu", {}, "cudnn"),
        ("gpu", {"key_length": 77}, "cudnn"),
        ("gpu", {"dtype": jnp.float32}, "xla"),
        ("gpu", {"head_size": 160}, "xla"),
        ("gpu", {"head_size": 36}, "xla"),
        ("gpu", {"plain": False}, "xla"),
        ("cpu", {}, "xla"),
    ],
)
def test_auto_depends_on_platform_type_and_sizes(platform, changes, chosen):
    call = {
        "dtype": jnp.bfloat16,
        "head_size": 64,
        "query_length": 4096,
        "key_length": 4096,
        "plain": True,
    }
    assert choose(platform, **call | changes) == chosen


def test_auto_prefers_the_mesh_to_the_default_backend(rng, monkeypatch):
    """A program for TPUs may be compiled on a machine without one, and vice versa."""
    arrays = long_inputs(rng)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])

    def program(**options):
        attend = functools.partial(dot_product_attention, **options)
        return str(jax.make_jaxpr(attend)(*arrays))

    xla = program(implementation="xla")
    assert program() == xla
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert "pallas_call" in program()
    assert "pallas_call" not in xla
    assert program(mesh=mesh) == program(implementation="xla") == xla


def test_an_explicit_implementation_is_not_replaced(rng):
    arrays = inputs(rng)
    with pytest.raises(ValueError, match=r"cudnn attention: expected bfloat16 .* expected a GPU"):
        dot_product_attention(*arrays, implementation="cudnn")
    with pytest.raises(ValueError, match="splash attention: expected no mask, bias"):
        dot_product_attention(*arrays, causal=True, implementation="splash")


@pytest.mark.parametrize(("length", "padded"), [(4096, 4096), (1600, 1792), (1456, 1536)])
def test_splash_pads_little(length, padded):
    """The sizes of SDXL at 1024 and at two of the paper's buckets."""
    assert splash.padded_length(length) == padded
