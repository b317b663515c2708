"""Solvers on distributions whose solution is known, and what the scan promises.

For data that are normal with variance c^2 the best estimate of x0 is alpha c^2 x / (alpha^2 c^2 +
sigma^2), and the probability flow takes y = x / alpha at the noise level s = sigma / alpha along
y = k sqrt(c^2 + s^2). So the end is known without any solver.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pea_jax.diffusion import solvers
from pea_jax.diffusion.guidance import classifier_free_guidance
from pea_jax.diffusion.schedule import Schedule

SCHEDULE = Schedule(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SPREAD = 0.5


def with_spacing(spacing: str | None, **entries) -> Schedule:
    return dataclasses.replace(SCHEDULE, timestep_spacing=spacing, **entries)


def gaussian_denoise(alphas_cumprod, prediction_type, latents, timestep):
    """The best prediction for normal data of standard deviation SPREAD."""
    levels = jnp.sqrt((1 - alphas_cumprod) / alphas_cumprod)
    level = jnp.interp(timestep, jnp.arange(len(levels), dtype=jnp.float32), levels)
    alpha = 1 / jnp.sqrt(1 + level**2)
    sigma = level * alpha
    x0 = alpha * SPREAD**2 * latents / (alpha**2 * SPREAD**2 + sigma**2)
    noise = (latents - alpha * x0) / sigma
    return noise if prediction_type == "epsilon" else alpha * noise - sigma * x0


@jax.jit
def solve(plan, noise, keys):
    alphas_cumprod = jnp.asarray(SCHEDULE.alphas_cumprod)
    denoise = functools.partial(gaussian_denoise, alphas_cumprod, plan.prediction_type)
    return solvers.sample(denoise, noise, plan, keys)


def keys_of(*seeds: int) -> jax.Array:
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def error(name: str, steps: int, prediction_type: str) -> float:
    """How far a solver ends from the solution, when it is to end at the level of timestep 0."""
    schedule = with_spacing(
        "trailing",
        prediction_type=prediction_type,
        final_sigmas_type="sigma_min",
        set_alpha_to_one=False,
    )
    noise = np.linspace(-2, 2, 8, dtype=np.float32).reshape(1, 8)
    plan = solvers.plan(name, schedule, steps)
    first = float(plan.table["sigma"][0] / plan.table["alpha"][0])
    alpha_bar = schedule.alphas_cumprod[0]
    last = np.sqrt((1 - alpha_bar) / alpha_bar)
    y = noise * plan.initial_scale / plan.table["alpha"][0]
    expected = y * np.sqrt((SPREAD**2 + last**2) / (SPREAD**2 + first**2))
    if name != "euler":  # Euler hands over y itself
        expected *= np.sqrt(alpha_bar)
    return float(np.max(np.abs(solve(plan, jnp.asarray(noise), keys_of(0)) - expected)))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("euler", 1), ("dpmpp_2m", 2)])
def test_order_of_convergence(name, order, prediction_type):
    """Twice the steps, 2^order times less error: a wrong coefficient breaks the order."""
    coarse, fine = (error(name, steps, prediction_type) for steps in (125, 250))
    assert fine < (0.011 if order == 1 else 0.004)
    assert 0.8 * 2**order < coarse / fine < 1.2 * 2**order


@pytest.mark.parametrize("name", sorted(solvers.SOLVERS))
def test_a_single_image_is_found_in_any_number_of_steps(name):
    """When the network knows x0 for certain, every solver ends exactly there."""
    image = jnp.linspace(-1, 1, 6).reshape(1, 6)

    def denoise(latents, timestep):
        alpha_bar = jnp.asarray(SCHEDULE.alphas_cumprod)[timestep.astype(jnp.int32)]
        return (latents - jnp.sqrt(alpha_bar) * image) / jnp.sqrt(1 - alpha_bar)

    for steps in (3, 20):
        plan = solvers.plan(name, with_spacing("trailing"), steps)
        noise = solvers.gaussian(keys_of(1), (6,))
        end = solvers.sample(denoise, noise, plan, keys_of(2))
        np.testing.assert_allclose(end, image, atol=1e-4)


def test_ancestral_noise_has_the_right_size():
    """Many ancestral samples have the spread of the data; without fresh noise, too little."""
    plan = solvers.plan("euler_ancestral", with_spacing("trailing"), 250)
    noise = solvers.gaussian(keys_of(3), (20_000,))
    end = solve(plan, noise, keys_of(4))
    assert abs(float(np.std(end)) - SPREAD) < 0.02
    silent = {**plan.table, "up": np.zeros_like(plan.table["up"])}
    assert np.std(solve(dataclasses.replace(plan, table=silent), noise, keys_of(4))) < 0.8 * SPREAD


def test_sample_depends_on_its_own_key_alone():
    plan = solvers.plan("euler_ancestral", SCHEDULE, 6)
    noise = solvers.gaussian(keys_of(1, 2, 3), (4, 4))
    together = solve(plan, noise, keys_of(11, 12, 13))
    permuted = solve(plan, noise[::-1], keys_of(13, 12, 11))[::-1]
    np.testing.assert_array_equal(together, permuted)
    alone = solve(plan, noise[1:2], keys_of(12))
    np.testing.assert_allclose(alone, together[1:2], rtol=1e-6)
    other = solve(plan, noise, keys_of(11, 99, 13))
    assert np.abs(other - together).max(axis=(1, 2)).round(3).astype(bool).tolist() == [0, 1, 0]


def test_same_samples_on_eight_devices():
    plan = solvers.plan("euler_ancestral", SCHEDULE, 6)
    noise, keys = solvers.gaussian(keys_of(*range(8)), (4, 4)), keys_of(*range(8))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    end = solve(plan, jax.device_put(noise, sharding), jax.device_put(keys, sharding))
    assert len(end.sharding.device_set) == 8
    np.testing.assert_allclose(end, solve(plan, noise, keys), rtol=1e-5, atol=1e-6)


def test_steps_schedule_and_guidance_do_not_recompile():
    @jax.jit
    def guided(plan, noise, keys, scale):
        def denoise(latents, timestep):
            return classifier_free_guidance(latents, 0.5 * latents + 0.001 * timestep, scale)

        return solvers.sample(denoise, noise, plan, keys)

    noise, keys = jnp.ones((2, 4)), keys_of(0, 1)
    for steps, scale in ((1, 1.0), (20, 7.5), (64, 3.0)):
        for schedule in (SCHEDULE, with_spacing("trailing", steps_offset=1, beta_end=0.02)):
            guided(solvers.plan("dpmpp_2m", schedule, steps), noise, keys, scale)
    assert guided._cache_size() == 1
    guided(solvers.plan("dpmpp_2m", SCHEDULE, 65), noise, keys, 1.0)
    assert guided._cache_size() == 2


def test_padding_calls_no_network():
    calls = []

    @jax.jit
    def count(plan):
        def denoise(latents, timestep):
            jax.debug.callback(lambda t: calls.append(float(t)), timestep, ordered=True)
            return latents

        return solvers.sample(denoise, jnp.ones((1, 2)), plan, keys_of(0))

    plan = solvers.plan("ddim", with_spacing("leading", steps_offset=1), 4)
    count(plan)
    jax.effects_barrier()
    assert calls == [751.0, 501.0, 251.0, 1.0]


def test_latents_keep_their_type_and_are_solved_in_float32():
    """The network sees bf16; between the steps nothing is rounded to it."""
    given = []

    def denoise(latents, timestep):
        given.append(latents.dtype)
        return latents

    plan = solvers.plan("ddim", SCHEDULE, 50)
    noise = solvers.gaussian(keys_of(0), (16,))
    noise = noise.astype(jnp.bfloat16)
    end = solvers.sample(denoise, noise, plan, keys_of(0))
    assert end.dtype == jnp.bfloat16
    assert set(given) == {jnp.dtype(jnp.bfloat16)}
    # e = x at every step, so the end is the noise times a number; fp64 says which.
    factor = np.prod(
        [
            row["next_alpha"] * (1 - row["sigma"]) / row["alpha"] + row["next_sigma"]
            for step in range(50)
            for row in [{k: np.float64(column[step]) for k, column in plan.table.items()}]
        ]
    )
    np.testing.assert_allclose(np.float32(end), np.float32(noise) * factor, rtol=0.01)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_number_of_steps(steps):
    with pytest.raises(ValueError, match=f"steps is {steps}, expected 1 to 1000"):
        solvers.plan("ddim", SCHEDULE, steps)


def test_other_refusals():
    with pytest.raises(ValueError, match="unknown solver 'plms', expected one of ddim, euler"):
        solvers.plan("plms", SCHEDULE, 20)
    with pytest.raises(ValueError, match="visited twice"):
        solvers.plan("dpmpp_2m", SCHEDULE, 1000)
    with pytest.raises(ValueError, match="timestep 1000 of 1000"):
        solvers.plan("ddim", with_spacing("leading", steps_offset=1), 1000)
