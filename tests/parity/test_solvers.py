"""The whole trajectory of every solver against the PyTorch schedulers of diffusers."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is the reference of the parity tests")
diffusers = pytest.importorskip("diffusers")

from pea_jax.diffusion import schedule as schedules
from pea_jax.diffusion import solvers
from pea_jax.diffusion.schedule import Schedule

REFERENCES = {
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_ancestral": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {}),
}
STABLE_DIFFUSION = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
SHAPE = (2, 4, 4, 3)
SEEDS = (5, 11)


def keys() -> jax.Array:
    return jnp.stack([jax.random.key(seed) for seed in SEEDS])


def toy(x, t, tanh, sin):
    """A network of sorts: not linear, and not the same at any two timesteps."""
    return tanh(0.7 * x + 0.3 * sin(t * 0.004)) + 0.2 * sin(3.0 * x)


@jax.jit
def ours(plan: solvers.Plan, noise: jax.Array) -> jax.Array:
    def denoise(x, t):
        return toy(x, t, jnp.tanh, jnp.sin)

    return solvers.sample(denoise, noise, plan, keys())


def start() -> np.ndarray:
    return np.random.default_rng(3).standard_normal(SHAPE, np.float32)


def reference_trajectory(name: str, config: dict, steps: int, monkeypatch) -> list[np.ndarray]:
    """What the network is given at each step, and the latents at the end."""
    scheduler = REFERENCES[name][0](**REFERENCES[name][1], **config)
    scheduler.set_timesteps(steps)
    noises = iter(
        solvers.gaussian(jax.vmap(jax.random.fold_in, (0, None))(keys(), step), SHAPE[1:])
        for step in range(steps)
    )
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor",
        lambda *_, **__: torch.from_numpy(np.array(next(noises))),
    )
    sample = torch.from_numpy(start()) * scheduler.init_noise_sigma
    trajectory = []
    for timestep in scheduler.timesteps:
        given = scheduler.scale_model_input(sample, timestep)
        trajectory.append(given.numpy())
        prediction = toy(given, timestep.float(), torch.tanh, torch.sin)
        sample = scheduler.step(prediction, timestep, sample).prev_sample
    return [*trajectory, sample.numpy()]


def check(name: str, config: dict, steps: int, monkeypatch) -> None:
    expected = reference_trajectory(name, config, steps, monkeypatch)
    plan = solvers.plan(name, Schedule.from_dict(config), steps)
    for step, latents in enumerate(expected):
        # Which rows are on is data: the same program stops after any number of steps.
        stopped = dataclasses.replace(plan, active=plan.active & (np.arange(64) < step))
        np.testing.assert_allclose(
            ours(stopped, jnp.asarray(start())),
            latents,
            rtol=1e-5,
            atol=1e-5,
            err_msg=f"{name}, {steps} steps, after step {step}: {config}",
        )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", sorted(solvers.SOLVERS))
def test_trajectory(name, prediction_type, monkeypatch):
    spacings = ("leading", "trailing", "linspace")
    for spacing, offset, steps in itertools.product(spacings, (0, 1), (2, 7, 14, 15, 30)):
        config = {
            **STABLE_DIFFUSION,
            "prediction_type": prediction_type,
            "timestep_spacing": spacing,
            "steps_offset": offset,
        }
        check(name, config, steps, monkeypatch)


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("ddim", {"set_alpha_to_one": False, "steps_offset": 1}),
        ("euler", {"final_sigmas_type": "sigma_min", "timestep_spacing": "leading"}),
        ("euler", {"final_sigmas_type": "sigma_min", "timestep_spacing": "trailing"}),
        ("dpmpp_2m", {"final_sigmas_type": "sigma_min"}),
        ("dpmpp_2m", {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
        ("dpmpp_2m", {"final_sigmas_type": "sigma_min", "euler_at_final": True}),
    ],
)
def test_last_step(name, entries, monkeypatch):
    for steps in (10, 20):
        check(name, {**STABLE_DIFFUSION, **entries}, steps, monkeypatch)


@pytest.mark.parametrize("name", sorted(solvers.SOLVERS))
def test_other_schedule(name, monkeypatch):
    """Linear betas, another range, fewer timesteps; the spacing left to the scheduler."""
    config = {"num_train_timesteps": 400, "beta_start": 0.0005, "beta_end": 0.03}
    check(name, {**config, "beta_schedule": "linear"}, 9, monkeypatch)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
def test_alphas_cumprod(beta_schedule):
    config = {**STABLE_DIFFUSION, "beta_schedule": beta_schedule}
    expected = diffusers.DDPMScheduler(**config).alphas_cumprod.numpy()
    # Equal to the bit on a processor with fused multiply-add; PyTorch itself differs without.
    np.testing.assert_allclose(Schedule.from_dict(config).alphas_cumprod, expected, rtol=5e-7)


@pytest.mark.parametrize("name", [cls for cls, _ in REFERENCES.values()])
def test_config_saved_by_diffusers_is_read(name, tmp_path):
    """Every entry that a scheduler writes is known, and its defaults are supported."""
    options = {"clip_sample": False} if name is diffusers.DDIMScheduler else {}
    config = dict(name(**STABLE_DIFFUSION, **options).config)
    schedule = Schedule.from_dict({**config, "_class_name": name.__name__})
    assert schedule.beta_start == STABLE_DIFFUSION["beta_start"]


def test_noising_and_velocity():
    rng = np.random.default_rng(0)
    latents, noise = rng.standard_normal((2, 3, *SHAPE[1:]), np.float32)
    timesteps = np.array([0, 500, 999])
    schedule = Schedule.from_dict({**STABLE_DIFFUSION, "prediction_type": "v_prediction"})
    alpha_bar = jnp.asarray(schedule.alphas_cumprod[timesteps])
    reference = diffusers.DDPMScheduler(**STABLE_DIFFUSION)
    arguments = [torch.from_numpy(array) for array in (latents, noise, timesteps)]
    arrays = jnp.asarray(latents), jnp.asarray(noise), alpha_bar
    np.testing.assert_allclose(
        schedules.add_noise(*arrays), reference.add_noise(*arguments).numpy(), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        schedules.target(schedule, *arrays),
        reference.get_velocity(*arguments).numpy(),
        rtol=1e-5,
        atol=1e-6,
    )
