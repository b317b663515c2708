"""Which timesteps a solver visits, and how much noise the latents hold there.

The noise level is s = sigma / alpha, with alpha^2 + sigma^2 = 1. All of it is float64 on the host.
"""

import numpy as np
from jaxtyping import Float

from pea_jax.diffusion.schedule import Schedule


def visited_timesteps(schedule: Schedule, steps: int, spacing: str) -> Float[np.ndarray, " steps"]:
    """The timesteps to visit, from noise to data (arXiv 2305.08891, table 2); may be fractions."""
    count = schedule.num_train_timesteps
    if spacing == "linspace":
        return np.linspace(0, count - 1, steps)[::-1]
    if spacing == "leading":
        return np.arange(steps)[::-1] * float(count // steps) + schedule.steps_offset
    return (count - np.arange(steps) * (count / steps)).round() - 1


def check_range(name: str, schedule: Schedule, steps: int, timesteps: np.ndarray) -> None:
    """Raises where an offset leads past the schedule."""
    if timesteps.max() > schedule.num_train_timesteps - 1:
        raise ValueError(
            f"{name} with {steps} steps and steps_offset {schedule.steps_offset} would visit "
            f"timestep {timesteps.max():.0f} of {schedule.num_train_timesteps}; use fewer steps"
        )


def training_levels(schedule: Schedule) -> Float[np.ndarray, " T"]:
    """s = sigma / alpha of every training timestep."""
    alphas_cumprod = schedule.alphas_cumprod.astype(np.float64)
    return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)


def alpha_of(noise_levels: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
    """alpha where sigma / alpha is the noise level."""
    return 1 / np.sqrt(noise_levels**2 + 1)


def continuous_levels(
    schedule: Schedule, steps: int
) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"]]:
    """Timesteps of the Euler family, and s interpolated at them."""
    timesteps = visited_timesteps(schedule, steps, schedule.timestep_spacing or "linspace")
    levels = training_levels(schedule)
    return timesteps, np.interp(timesteps, np.arange(len(levels)), levels)


def euler_start(schedule: Schedule, noise_levels: Float[np.ndarray, " steps"]) -> float:
    """`leading` does not begin at the last timestep, and takes the noise for the latents there."""
    if schedule.timestep_spacing == "leading":
        return 1.0
    return float((noise_levels * alpha_of(noise_levels))[0])
