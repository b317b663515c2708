"""The noise schedule and the reading of scheduler_config.json."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

from pea_jax.diffusion import schedule as schedules
from pea_jax.diffusion.schedule import Schedule

# scheduler/scheduler_config.json of SD 1.5 and of SD 2.1, as published on the Hub.
SD15 = json.loads("""{
  "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
  "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": false,
  "num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true,
  "steps_offset": 1, "trained_betas": null
}""")
SD21 = json.loads("""{
  "_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", "beta_end": 0.012,
  "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": false,
  "num_train_timesteps": 1000, "prediction_type": "v_prediction", "set_alpha_to_one": false,
  "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null
}""")


def test_stable_diffusion():
    schedule = Schedule.from_dict(SD15)
    assert schedule.prediction_type == "epsilon"
    assert Schedule.from_dict(SD21).prediction_type == "v_prediction"
    # Betas by hand: roots from sqrt(0.00085) to sqrt(0.012) in equal steps.
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    np.testing.assert_allclose(schedule.alphas_cumprod, np.cumprod(1 - betas), rtol=1e-4)
    assert schedule.alphas_cumprod.dtype == np.float32


def test_linear_betas():
    schedule = Schedule.from_dict({"num_train_timesteps": 4, "beta_start": 0.1, "beta_end": 0.4})
    np.testing.assert_allclose(
        schedule.alphas_cumprod, [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7, 0.9 * 0.8 * 0.7 * 0.6], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("_class_name", "FlowMatchEulerDiscreteScheduler"),
        ("beta_schedule", "squaredcos_cap_v2"),
        ("prediction_type", "sample"),
        ("timestep_spacing", "uniform"),
        ("final_sigmas_type", "tiny"),
        ("clip_sample", True),
        ("thresholding", True),
        ("rescale_betas_zero_snr", True),
        ("use_karras_sigmas", True),
        ("algorithm_type", "sde-dpmsolver++"),
        ("solver_order", 3),
        ("trained_betas", [0.1, 0.2]),
        ("variance_type", "learned_range"),
        ("num_train_timesteps", 0),
        ("shift", 3.0),
    ],
)
def test_unsupported_value_names_itself(entry, value):
    with pytest.raises(ValueError, match=rf"{entry}: .*got {re.escape(repr(value))}"):
        Schedule.from_dict({**SD15, entry: value})


def test_all_unsupported_entries_in_one_error():
    with pytest.raises(ValueError, match=r"solver_order.*use_karras_sigmas"):
        Schedule.from_dict({**SD15, "solver_order": 1, "use_karras_sigmas": True})


def test_betas_out_of_order():
    with pytest.raises(ValueError, match=r"beta_start and beta_end are 0\.012 and 0\.00085"):
        Schedule.from_dict({**SD15, "beta_start": 0.012, "beta_end": 0.00085})


def test_noise_and_velocity_span_the_latents(rng):
    """x0 and e can be computed from x_t and v_t: x0 = sqrt(a) x_t - sqrt(1-a) v_t, for example."""
    latents, noise = jnp.asarray(rng.standard_normal((2, 3, 4, 4, 2), np.float32))
    alpha_bar = jnp.asarray([0.999, 0.5, 0.005], jnp.float32)
    noisy = schedules.add_noise(latents, noise, alpha_bar)
    velocity = schedules.velocity(latents, noise, alpha_bar)
    signal = np.sqrt(alpha_bar).reshape(3, 1, 1, 1)
    sigma = np.sqrt(1 - alpha_bar).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(signal * noisy - sigma * velocity, latents, atol=1e-5)
    np.testing.assert_allclose(signal * velocity + sigma * noisy, noise, atol=1e-5)


def test_target(rng):
    latents, noise = jnp.asarray(rng.standard_normal((2, 2, 4, 4, 2), np.float32))
    alpha_bar = jnp.asarray([0.9, 0.1], jnp.float32)
    epsilon = schedules.target(Schedule.from_dict(SD15), latents, noise, alpha_bar)
    np.testing.assert_array_equal(epsilon, noise)
    velocity = schedules.target(Schedule.from_dict(SD21), latents, noise, alpha_bar)
    np.testing.assert_array_equal(velocity, schedules.velocity(latents, noise, alpha_bar))
