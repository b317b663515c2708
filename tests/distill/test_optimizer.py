"""The optimiser: the schedule's shape, what is decayed, what is clipped, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pea_jax.distill.optimizer import make_optimizer, make_schedule


def test_schedule_warms_up_decays_and_stays():
    """A rate off by one step, or a decay counted from the end of the warm-up, would show."""
    schedule = make_schedule(
        2e-3, end_learning_rate=2e-4, warmup_steps=4, decay_steps=14, power=2.0
    )
    rates = [float(schedule(step)) for step in (0, 1, 3, 4, 9, 14, 1000)]
    middle = 2e-4 + 1.8e-3 * 0.5**2
    np.testing.assert_allclose(rates, [0, 5e-4, 1.5e-3, 2e-3, middle, 2e-4, 2e-4], rtol=1e-5)


def test_schedule_without_warm_up_starts_at_the_peak():
    schedule = make_schedule(1e-3, end_learning_rate=0.0, decay_steps=10)
    np.testing.assert_allclose([schedule(0), schedule(5), schedule(10)], [1e-3, 5e-4, 0], rtol=1e-5)


def test_schedule_without_decay_is_constant():
    schedule = make_schedule(1e-3, end_learning_rate=1e-5, warmup_steps=2)
    np.testing.assert_allclose([schedule(1), schedule(2), schedule(10**7)], [5e-4, 1e-3, 1e-3])


def test_official_schedule_at_its_published_end():
    """method.md: 1e-5, 100 warm-up steps, to 5e-8 over 2,232,142 steps."""
    schedule = make_schedule(1e-5, end_learning_rate=5e-8, warmup_steps=100, decay_steps=2_232_142)
    at_release = float(schedule(50_000))
    assert 0.97e-5 < at_release < 0.98e-5
    np.testing.assert_allclose(float(schedule(2_232_142)), 5e-8, rtol=1e-4)


def adamw(params, gradients, *, rate, beta1, beta2, epsilon, decay, clip):
    """AdamW in numpy, from the paper's algorithm 2."""
    moments = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in params.items()}
    for step, gradient in enumerate(gradients, start=1):
        norm = np.sqrt(sum(np.sum(g**2) for g in gradient.values()))
        for name, parameter in params.items():
            clipped = gradient[name] * min(1.0, clip / norm)
            first, second = moments[name]
            first = beta1 * first + (1 - beta1) * clipped
            second = beta2 * second + (1 - beta2) * clipped**2
            moments[name] = first, second
            update = (first / (1 - beta1**step)) / (np.sqrt(second / (1 - beta2**step)) + epsilon)
            if parameter.ndim > 1:
                update = update + decay * parameter
            params[name] = parameter - rate * update
    return params


def test_updates_are_adamw_after_clipping(rng):
    """Decayed biases, a clip after the moments, or decay that is not scaled by the rate, show."""
    params = {"kernel": rng.standard_normal((4, 3)), "bias": rng.standard_normal(3)}
    gradients = [
        {name: 5 * rng.standard_normal(p.shape) for name, p in params.items()},
        {name: 0.01 * rng.standard_normal(p.shape) for name, p in params.items()},
        {name: rng.standard_normal(p.shape) for name, p in params.items()},
    ]
    tx, _ = make_optimizer(
        1e-2, beta1=0.8, beta2=0.95, epsilon=1e-3, weight_decay=0.3, clip_norm=1.0
    )

    ours = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state = tx.init(ours)
    for gradient in gradients:
        updates, state = tx.update(
            jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gradient), state, ours
        )
        ours = optax.apply_updates(ours, updates)

    wanted = adamw(
        dict(params), gradients, rate=1e-2, beta1=0.8, beta2=0.95, epsilon=1e-3, decay=0.3, clip=1.0
    )
    for name, parameter in wanted.items():
        np.testing.assert_allclose(ours[name], parameter, rtol=1e-5, atol=1e-6, err_msg=name)


def test_no_clipping_unless_asked():
    """With a huge epsilon the first update is the gradient, scaled: its norm tells of a clip."""
    params = {"kernel": jnp.zeros((2, 2))}
    gradient = {"kernel": jnp.full((2, 2), 100.0)}
    sizes = []
    for clip in (0.0, 1.0):
        tx, _ = make_optimizer(1.0, epsilon=1e6, clip_norm=clip)
        updates, _ = tx.update(gradient, tx.init(params), params)
        sizes.append(float(optax.tree.norm(updates)) * 1e6)
    np.testing.assert_allclose(sizes, [200.0, 1.0], rtol=1e-3)


def test_every_impossible_value_is_named():
    with pytest.raises(ValueError, match="schedule") as error:
        make_schedule(-1.0, end_learning_rate=-2.0, warmup_steps=-1, decay_steps=-5, power=0.0)
    for name in ("learning_rate", "end_learning_rate", "warmup_steps", "decay_steps", "power"):
        assert name in str(error.value)
    with pytest.raises(ValueError, match="optimizer") as error:
        make_optimizer(
            1e-3, beta1=1.0, beta2=-0.1, epsilon=0.0, weight_decay=-1.0, clip_norm=float("nan")
        )
    for name in ("beta1", "beta2", "epsilon", "weight_decay", "clip_norm"):
        assert name in str(error.value)


def test_a_decay_within_the_warm_up_is_refused():
    with pytest.raises(ValueError, match="must exceed warmup_steps = 10, got 10"):
        make_schedule(1e-3, warmup_steps=10, decay_steps=10)
