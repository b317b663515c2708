"""The adapter by itself: exact sizes, the formula of method.md, its start, its config."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pea_jax.models.adapter import Adapter, AdapterConfig
from pea_jax.weights.names import key_of


def abstract(config: AdapterConfig) -> Adapter:
    return nnx.eval_shape(lambda: Adapter(config, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (AdapterConfig(1024, 2048, 768), 7_866_368),
        (AdapterConfig(1024, 3072, 768, projector_layers=5), 33_818_624),
        (AdapterConfig(1024, 1024, 2048, pooled_width=1280), 6_033_408),
        (AdapterConfig(1024, 2048, 2048, pooled_width=1280), 11_538_432),
        (AdapterConfig(2048, 2048, 2048, pooled_width=1280), 13_637_632),
        (AdapterConfig(768, 2048, 2048, pooled_width=1280), 11_013_632),
        (AdapterConfig(1024, 2048, 2048, projector_layers=4, pooled_width=1280), 15_732_736),
        (AdapterConfig(1024, 1024, 2048, 2, pooled_width=1280, bias=True), 4_987_136),
    ],
    ids=[
        "sd-1.5",
        "sd-1.5 script",
        "chinese-clip",
        "mul_clip",
        "mt5",
        "alt_clip",
        "released pg",
        "released fc1-3",
    ],
)
def test_published_parameter_counts(config, parameters):
    """The table of method.md; an extra bias or a wrong width would show here."""
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract(config)))) == parameters


def test_keys_are_those_of_the_released_files():
    """With other keys, released files could not be read, nor ours by the authors' code."""

    def keys(config: AdapterConfig) -> set[str]:
        return {key_of(path) for path, _ in nnx.to_flat_state(nnx.state(abstract(config)))}

    shared = {"layernorm.weight", "layernorm.bias"} | {f"projector.{i}.weight" for i in (0, 2, 4)}
    assert keys(AdapterConfig(4, 5, 6)) == shared
    assert keys(AdapterConfig(4, 5, 6, pooled_width=3)) == shared | {"fc.weight", "fc.bias"}


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


@pytest.mark.parametrize(("pooled_width", "bias"), [(None, False), (3, False), (3, True)])
def test_formula(pooled_width, bias, rng):
    """method.md in numpy, float64. A tanh GELU, an extra GELU or a masked mean would show."""
    config = AdapterConfig(6, 8, 5, pooled_width=pooled_width, bias=bias)
    adapter = Adapter(config, rngs=nnx.Rngs(0))
    state = nnx.state(adapter)
    values = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), state)
    nnx.update(adapter, values)
    x = rng.normal(size=(2, 4, 6)).astype(np.float32)

    exact = {
        key_of(path): np.asarray(leaf[...], np.float64)
        for path, leaf in nnx.to_flat_state(nnx.state(adapter))
    }
    variance = x.astype(np.float64).var(axis=-1, keepdims=True)
    normed = (x - x.mean(axis=-1, keepdims=True, dtype=np.float64)) / np.sqrt(variance + 1e-5)
    hidden = normed * exact["layernorm.weight"] + exact["layernorm.bias"]
    for layer in ("projector.0", "projector.2", "projector.4"):
        hidden = hidden if layer == "projector.0" else _gelu(hidden)
        hidden = hidden @ exact[f"{layer}.weight"] + exact.get(f"{layer}.bias", 0.0)
    got = adapter(jnp.asarray(x))
    if pooled_width is None:
        assert got.pooled is None
        np.testing.assert_allclose(got.tokens, hidden, rtol=1e-4, atol=1e-4)
    else:
        tokens = _gelu(hidden) @ exact["fc.weight"] + exact["fc.bias"]
        np.testing.assert_allclose(got.tokens, tokens, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(got.pooled, hidden.mean(axis=1), rtol=1e-4, atol=1e-4)


def test_starts_as_pytorch_does():
    """Uniform in +-1/sqrt(fan_in): another scale would differ from the paper's start."""
    adapter = Adapter(AdapterConfig(64, 100, 50, pooled_width=25), rngs=nnx.Rngs(0))
    for layer, fan_in in [
        (adapter.projector[0], 64),
        (adapter.projector[2], 100),
        (adapter.projector[4], 100),
        (adapter.fc, 25),
    ]:
        kernel, bound = np.asarray(layer.kernel[...]), fan_in**-0.5
        assert 0.98 * bound < np.abs(kernel).max() <= bound
        assert kernel.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert np.unique(adapter.fc.bias[...]).size == 50
    assert np.abs(adapter.fc.bias[...]).max() <= 0.2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"input_width": 0}, "input_width: expected a positive integer, got 0"),
        ({"hidden_width": -1}, "hidden_width"),
        ({"output_width": 0}, "output_width"),
        ({"projector_layers": 1}, "projector_layers: expected at least 2, got 1"),
        ({"pooled_width": 0}, "pooled_width"),
        ({"bias": True}, "bias: expected false without a pooled_width, got true"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_impossible_sizes_name_themselves(arguments, named):
    """A width of 0 would make an adapter without parameters to train."""
    with pytest.raises(ValueError, match=named):
        AdapterConfig(**{"input_width": 4, "hidden_width": 4, "output_width": 4, **arguments})


def test_wrong_width_is_refused():
    """The error names the width of the encoder that the adapter was trained for."""
    adapter = Adapter(AdapterConfig(4, 4, 4), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"width 4 \(input_width\), got 5"):
        adapter(jnp.zeros((1, 2, 5)))
