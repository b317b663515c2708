"""Solvers: from noise to latents in a few calls of a network that they never see.

All of them keep the latents as the network sees them, x = alpha x0 + sigma e with
alpha^2 + sigma^2 = 1, and turn its prediction into estimates of x0 and e:

    epsilon:       e = prediction,                    x0 = (x - sigma e) / alpha
    v_prediction:  e = alpha prediction + sigma x,    x0 = alpha x - sigma prediction

What a step does with them is linear, so that all a solver knows beforehand is a table of
coefficients, one row a step, made on the host in fp64 by `plan`. `sample` runs the rows in one
`lax.scan`. Rows that are not needed are switched off rather than left out, so the same compiled
program serves every number of steps up to `BUCKETS[0]`, then up to `BUCKETS[1]`, ...

A program is compiled anew for another solver, another bucket of steps, another shape or type of the
latents, another prediction type and, of course, another `denoise`. Steps within a bucket, spacing,
offsets, the numbers of the schedule, guidance and seeds are data.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from pea_jax.diffusion.noise_levels import (
    alpha_of,
    check_range,
    continuous_levels,
    euler_start,
    training_levels,
    visited_timesteps,
)
from pea_jax.diffusion.schedule import Schedule

#: Numbers of rows that a plan can have. A row that is switched off costs microseconds.
BUCKETS = (64, 256, 1024)

Latents = Float[Array, "B *rest"]
#: Maps latents and the timestep, a scalar, to the network's raw prediction.
Denoise = Callable[[Latents, Float[Array, ""]], Latents]
#: Columns of a plan, or one row of them.
Row = dict[str, Float[Array, ""]]
Table = dict[str, Float[np.ndarray, " steps"]]


@typing.no_type_check  # tree transformations rebuild it around shapes and placeholders
@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("active", "table", "initial_scale"),
    meta_fields=("solver", "prediction_type"),
)
@dataclasses.dataclass(frozen=True)
class Plan:
    """The steps of one solver: a pytree that is passed to a jitted function.

    Attributes:
        active: which rows are steps; the others pad to the bucket, [S].
        table: columns of fp32 [S]: `timestep`, `alpha` and `sigma` of the latents that the network
            is given, and the solver's own coefficients.
        initial_scale: what the standard normal noise is multiplied with at the start.
        solver: the name in `SOLVERS`; static.
        prediction_type: what the network predicts; static.
    """

    active: Bool[Array | np.ndarray, " S"]
    table: dict[str, Float[Array | np.ndarray, " S"]]
    initial_scale: Float[Array | np.ndarray, ""]
    solver: str
    prediction_type: str


class Scheduler(NamedTuple):
    """The scheduler of diffusers that takes the same steps, see `scheduler_config`.

    Attributes:
        name: its class.
        spacing: its default timestep spacing.
        fields: fields of `Schedule` that it has beside the common ones.
        options: values that make it the solver.
    """

    name: str
    spacing: str
    fields: tuple[str, ...] = ()
    options: Mapping[str, Any] = MappingProxyType({})


class Solver(NamedTuple):
    """A solver: its table, its step, and the scheduler that a model is exported with.

    `table(schedule, steps)` gives the columns and the initial scale. `step(latents, x0, e, memory,
    row, noise)` gives the next latents and what the next step remembers; `noise` is a function that
    only stochastic solvers call, and memory is x0-like.
    """

    table: Callable[[Schedule, int], tuple[Table, float]]
    step: Callable[..., tuple[Latents, Latents]]
    scheduler: Scheduler


def plan(name: str, schedule: Schedule, steps: int) -> Plan:
    """The plan of `steps` steps of the solver `name` on a schedule.

    Raises:
        ValueError: for an unknown solver, or a number of steps that the schedule does not allow.
    """
    if name not in SOLVERS:
        raise ValueError(f"unknown solver {name!r}, expected one of {', '.join(SOLVERS)}")
    most = min(schedule.num_train_timesteps, BUCKETS[-1])
    if not 1 <= steps <= most:
        raise ValueError(f"steps is {steps}, expected 1 to {most} for this noise schedule")
    table, initial_scale = SOLVERS[name].table(schedule, steps)
    size = next(bucket for bucket in BUCKETS if bucket >= steps)
    return Plan(
        active=np.arange(size) < steps,
        # The last row again, so that nothing in the padding is a special number.
        table={
            column: np.pad(values.astype(np.float32), (0, size - steps), mode="edge")
            for column, values in table.items()
        },
        initial_scale=np.array(initial_scale, np.float32),
        solver=name,
        prediction_type=schedule.prediction_type,
    )


def sample(
    denoise: Denoise,
    noise: Float[Array, "B *rest"],
    plan: Plan,
    keys: Key[Array, " B"],
) -> Float[Array, "B *rest"]:
    """Solves from noise to clean latents.

    Args:
        denoise: the network: latents [B, ...] and a timestep (a scalar) to its prediction [B, ...].
        noise: standard normal; the solver scales it.
        plan: from `plan`, with the solver's name.
        keys: one a sample, for solvers that add noise: what a sample becomes depends on its own key
            and noise, never on its place in the batch. Step i uses `fold_in(key, i)`.

    Returns:
        The latents at the end, in the type of `noise`; computed in fp32.
    """
    solver = SOLVERS[plan.solver]

    def step(carry, inputs):
        latents, memory = carry
        row, index = inputs
        prediction = denoise(latents.astype(noise.dtype), row["timestep"]).astype(jnp.float32)
        x0, e = _estimates(plan.prediction_type, latents, prediction, row)
        draw = functools.partial(gaussian, jax.vmap(jax.random.fold_in, (0, None))(keys, index))
        return solver.step(latents, x0, e, memory, row, draw)

    def body(carry, inputs):
        active, *rest = inputs
        return jax.lax.cond(active, step, lambda carry, _: carry, carry, rest), None

    latents = noise.astype(jnp.float32) * plan.initial_scale
    rows = (plan.active, plan.table, jnp.arange(len(plan.active)))
    (latents, _), _ = jax.lax.scan(body, (latents, jnp.zeros_like(latents)), rows)
    return latents.astype(noise.dtype)


def gaussian(keys: Key[Array, " B"], shape: tuple[int, ...]) -> Float[Array, "B *rest"]:
    """Standard normal noise [B, *shape], fp32, every sample from its own key alone."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def _estimates(
    prediction_type: str, latents: Latents, prediction: Latents, row: Row
) -> tuple[Latents, Latents]:
    """The estimates of x0 and e that a prediction holds."""
    alpha, sigma = row["alpha"], row["sigma"]
    if prediction_type == "v_prediction":
        return alpha * latents - sigma * prediction, alpha * prediction + sigma * latents
    return (latents - sigma * prediction) / alpha, prediction


# --- DDIM (arXiv 2010.02502, eq. 12, eta = 0), and Euler, whose update is the same ----------------


def _ddim_step(latents, x0, e, memory, row, noise):
    """x' = alpha' x0 + sigma' e: the same noise at a lower level."""
    return row["next_alpha"] * x0 + row["next_sigma"] * e, memory


def _ddim_table(schedule: Schedule, steps: int) -> tuple[Table, float]:
    count = schedule.num_train_timesteps
    timesteps = visited_timesteps(schedule, steps, schedule.timestep_spacing or "leading").round()
    check_range("ddim", schedule, steps, timesteps)
    indices = timesteps.astype(np.int64)
    # diffusers always goes down by T // steps, whatever the spacing; after `linspace` and, where
    # `steps` does not divide T, `trailing` this is not quite the next timestep.
    following = indices - count // steps
    alphas_cumprod = schedule.alphas_cumprod.astype(np.float64)
    last = 1.0 if schedule.set_alpha_to_one else alphas_cumprod[0]
    next_alpha_bar = np.where(following >= 0, alphas_cumprod[following.clip(0)], last)
    table = {
        "timestep": timesteps,
        "alpha": np.sqrt(alphas_cumprod[indices]),
        "sigma": np.sqrt(1 - alphas_cumprod[indices]),
        "next_alpha": np.sqrt(next_alpha_bar),
        "next_sigma": np.sqrt(1 - next_alpha_bar),
    }
    return table, 1.0


def _euler_table(schedule: Schedule, steps: int) -> tuple[Table, float]:
    """Euler's method on dy/ds = e for y = x / alpha = x0 + s e, s = sigma / alpha.

    (arXiv 2206.00364, algorithm 1 with s(t) = 1.) From s to s', y' = y + (s' - s) e = x0 + s' e:
    in x, the DDIM update. The two differ in the timesteps, which may be fractions here, with s
    interpolated between them, and in the start.
    """
    timesteps, noise_levels = continuous_levels(schedule, steps)
    last = training_levels(schedule)[0] if schedule.final_sigmas_type == "sigma_min" else 0.0
    following = np.append(noise_levels[1:], last)
    next_alpha = alpha_of(following)
    # What is left at the end is y, not x; the two are the same where no noise is left.
    next_alpha[-1] = 1.0
    table = {
        "timestep": timesteps,
        "alpha": alpha_of(noise_levels),
        "sigma": noise_levels * alpha_of(noise_levels),
        "next_alpha": next_alpha,
        "next_sigma": following * next_alpha,
    }
    return table, euler_start(schedule, noise_levels)


# --- Euler ancestral (k-diffusion; DDPM's posterior in Karras' terms) -----------------------------


def _ancestral_step(latents, x0, e, memory, row, noise):
    """Down to less noise than the next level has, then up to it with fresh noise."""
    fresh = noise(latents.shape[1:])
    next_latents = row["next_alpha"] * x0 + row["down"] * e + row["up"] * fresh
    return next_latents, memory


def _ancestral_table(schedule: Schedule, steps: int) -> tuple[Table, float]:
    timesteps, noise_levels = continuous_levels(schedule, steps)
    following = np.append(noise_levels[1:], 0.0)
    up = np.sqrt(following**2 * (noise_levels**2 - following**2) / noise_levels**2)
    down = np.sqrt(following**2 - up**2)
    table = {
        "timestep": timesteps,
        "alpha": alpha_of(noise_levels),
        "sigma": noise_levels * alpha_of(noise_levels),
        "next_alpha": alpha_of(following),
        "down": down * alpha_of(following),
        "up": up * alpha_of(following),
    }
    return table, euler_start(schedule, noise_levels)


# --- DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2) ----------------------------------------------


def _dpmpp_2m_step(latents, x0, e, memory, row, noise):
    """x' = (sigma' / sigma) x - alpha' (exp(-h) - 1) D, D extrapolated from two estimates of x0."""
    data = x0 + row["extrapolate"] * (x0 - memory)
    return row["keep"] * latents + row["add"] * data, x0


def _dpmpp_2m_table(schedule: Schedule, steps: int) -> tuple[Table, float]:
    """With lambda = log(alpha / sigma), h its growth over a step, and r = h_before / h."""
    # One timestep more than there are steps is laid out; the last is replaced by the end.
    spacing = schedule.timestep_spacing or "linspace"
    extra = 0 if spacing == "trailing" else 1
    timesteps = visited_timesteps(schedule, steps + extra, spacing)[:steps].round()
    check_range("dpmpp_2m", schedule, steps, timesteps)
    if len(np.unique(timesteps)) < steps:
        raise ValueError(
            f"dpmpp_2m cannot take {steps} steps with {spacing} spacing on "
            f"{schedule.num_train_timesteps} timesteps: some would be visited twice; use fewer"
        )
    levels = training_levels(schedule)
    noise_levels = levels[timesteps.astype(np.int64)]
    last = levels[0] if schedule.final_sigmas_type == "sigma_min" else 0.0
    following = np.append(noise_levels[1:], last)
    alpha, next_alpha = alpha_of(noise_levels), alpha_of(following)
    # exp(-h) as a ratio of noise levels is exact where the last one is zero.
    shrink = following / noise_levels
    with np.errstate(divide="ignore"):
        growth = -np.log(shrink)
    extrapolate = np.append(0.0, growth[1:] / (2 * growth[:-1]))
    if (
        schedule.final_sigmas_type == "zero"
        or schedule.euler_at_final
        or (schedule.lower_order_final and steps < 15)
    ):
        extrapolate[-1] = 0.0
    table = {
        "timestep": timesteps,
        "alpha": alpha,
        "sigma": noise_levels * alpha,
        "keep": shrink * next_alpha / alpha,
        "add": next_alpha * (1 - shrink),
        "extrapolate": extrapolate,
    }
    return table, 1.0


SOLVERS: dict[str, Solver] = {
    "ddim": Solver(
        _ddim_table,
        _ddim_step,
        Scheduler("DDIMScheduler", "leading", ("set_alpha_to_one",), {"clip_sample": False}),
    ),
    "euler": Solver(
        _euler_table,
        _ddim_step,
        Scheduler("EulerDiscreteScheduler", "linspace", ("final_sigmas_type",)),
    ),
    "euler_ancestral": Solver(
        _ancestral_table,
        _ancestral_step,
        Scheduler("EulerAncestralDiscreteScheduler", "linspace"),
    ),
    "dpmpp_2m": Solver(
        _dpmpp_2m_table,
        _dpmpp_2m_step,
        Scheduler(
            "DPMSolverMultistepScheduler",
            "linspace",
            ("final_sigmas_type", "lower_order_final", "euler_at_final"),
            {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"},
        ),
    ),
}


def scheduler_config(solver: str, schedule: Schedule) -> dict[str, Any]:
    """The scheduler_config.json of the diffusers scheduler that takes the steps of a solver.

    Every choice is written out: diffusers fills in what is missing by class, not by model.

    Args:
        solver: a key of `SOLVERS`.
        schedule: of the base model.
    """
    scheduler = SOLVERS[solver].scheduler
    fields = (
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "prediction_type",
        "steps_offset",
        *scheduler.fields,
    )
    return {
        "_class_name": scheduler.name,
        **{field: getattr(schedule, field) for field in fields},
        "timestep_spacing": schedule.timestep_spacing or scheduler.spacing,
        **scheduler.options,
    }
