"""The terms, their weights, and the mean over the whole batch."""

import jax.numpy as jnp
import numpy as np
import pytest

from pea_jax.distill.losses import (
    DistillSettings,
    feature_errors,
    require_finite,
    squared_error,
    total,
)


def test_squared_error_is_a_mean_for_each_row():
    prediction = jnp.arange(12.0).reshape(2, 3, 2)
    target = prediction + jnp.array([1.0, 3.0])[:, None, None]
    np.testing.assert_allclose(squared_error(prediction, target), [1.0, 9.0])


def test_squared_error_is_taken_in_float32(rng):
    """The mean over 4,096 squares in bfloat16 would be off in the third digit."""
    prediction = jnp.asarray(rng.standard_normal((2, 64, 64)), jnp.bfloat16)
    target = jnp.asarray(rng.standard_normal((2, 64, 64)), jnp.bfloat16)
    error = squared_error(prediction, target)
    wanted = np.square(np.asarray(prediction, np.float64) - np.asarray(target, np.float64))
    assert error.dtype == jnp.float32
    np.testing.assert_allclose(error, wanted.mean(axis=(1, 2)), rtol=1e-5)


def test_feature_errors_need_the_same_blocks(rng):
    one = jnp.asarray(rng.standard_normal((2, 4, 4, 3)), jnp.float32)
    errors = feature_errors({"down_0": one, "mid": one}, {"down_0": one, "mid": one + 2})
    np.testing.assert_allclose(errors["down_0"], [0, 0])
    np.testing.assert_allclose(errors["mid"], [4, 4], rtol=1e-6)
    with pytest.raises(ValueError, match=r"\['down_0', 'mid'\].*\['down_0'\]"):
        feature_errors({"down_0": one, "mid": one}, {"down_0": one})


def test_total_is_the_formula_of_the_method(rng):
    """With z from the formula: a mean over the masked part alone, or a weight on the wrong term,
    or features averaged over blocks instead of summed, gives another number."""
    z = np.array([1, 0, 0, 1, 0])
    native, output = rng.random(5), rng.random(5)
    features = {"down_0": rng.random(5), "mid": rng.random(5), "up_0": rng.random(5)}
    settings = DistillSettings(native_weight=2.0, output_weight=0.5, feature_weight=0.3)
    wanted = (
        2.0 * np.mean(z * native)
        + 0.5 * np.mean((1 - z) * output)
        + 0.3 * sum(np.mean((1 - z) * errors) for errors in features.values())
    )

    def rows(errors, value):
        return jnp.asarray(errors[z == value], jnp.float32)

    loss, metrics = total(
        settings,
        5,
        native=rows(native, 1),
        output=rows(output, 0),
        features={name: rows(errors, 0) for name, errors in features.items()},
    )
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss_native"], np.mean(z * native), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss_output"], np.mean((1 - z) * output), rtol=1e-6)
    blocks = {name: np.mean((1 - z) * errors) for name, errors in features.items()}
    np.testing.assert_allclose(metrics["loss_feature"], sum(blocks.values()), rtol=1e-6)
    for name, value in blocks.items():
        np.testing.assert_allclose(metrics[f"feature/{name}"], value, rtol=1e-6)


def test_a_term_that_is_not_there_has_no_metric():
    loss, metrics = total(DistillSettings(), 4, native=jnp.ones(2))
    assert metrics.keys() == {"loss", "loss_native"}
    np.testing.assert_allclose(loss, 0.5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"native_weight": -1.0, "noise_offset": -0.1}, ["native_weight", "noise_offset"]),
        ({"prompt_drop": 1.5, "feature_weight": float("nan")}, ["prompt_drop", "feature_weight"]),
        ({"native_weight": 0.0, "output_weight": 0.0, "feature_weight": 0.0}, ["must be positive"]),
    ],
)
def test_impossible_settings_are_refused(options, named):
    with pytest.raises(ValueError, match="DistillSettings") as error:
        DistillSettings(**options)
    for name in named:
        assert name in str(error.value)


def test_require_finite_names_every_broken_term_and_the_step():
    require_finite({"loss": 1.0, "grad_norm": np.float32(3)}, 7)
    broken = {"loss": np.nan, "loss_native": 0.5, "feature/mid": np.inf}
    with pytest.raises(FloatingPointError) as error:
        require_finite(broken, 7)
    assert str(error.value) == "step 7: not finite: loss = nan, feature/mid = inf"
