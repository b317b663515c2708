"""The noise schedule: how much of a latent is noise at each training timestep.

With x0 the clean latents, e standard normal noise and a_t the cumulative product of 1 - beta,

    x_t = sqrt(a_t) x0 + sqrt(1 - a_t) e                  (DDPM, arXiv 2006.11239, eq. 4)
    v_t = sqrt(a_t) e  - sqrt(1 - a_t) x0                 (velocity, arXiv 2202.00512, app. D)

A network predicts e ("epsilon": SD 1.x, SDXL) or v ("v_prediction": SD 2.1).
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pea_jax.runtime.config_fields import (
    COUNT,
    FLAG,
    NUMBER,
    Config,
    field,
    one_of,
    optional,
    require,
)

#: Scheduler classes of diffusers whose training schedule is the one above. Which of them a file
#: names has no effect: it is only a default solver, and the solver is chosen at sampling time.
SCHEDULER_CLASSES = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
)

#: Options of those classes that are not implemented, with the values that switch them off.
_OFF = {
    "_class_name": one_of(*SCHEDULER_CLASSES),
    "algorithm_type": one_of("dpmsolver++"),
    "clip_sample": one_of(False),
    "flow_shift": one_of(1, 1.0),
    "interpolation_type": one_of("linear"),
    "lambda_min_clipped": one_of(-float("inf")),
    "rescale_betas_zero_snr": one_of(False),
    "sigma_max": one_of(None),
    "sigma_min": one_of(None),
    "solver_order": one_of(2),
    "solver_type": one_of("midpoint"),
    "thresholding": one_of(False),
    "timestep_type": one_of("discrete"),
    "trained_betas": one_of(None),
    "use_beta_sigmas": one_of(False, None),
    "use_dynamic_shifting": one_of(False),
    "use_exponential_sigmas": one_of(False, None),
    "use_flow_sigmas": one_of(False, None),
    "use_karras_sigmas": one_of(False, None),
    "use_lu_lambdas": one_of(False, None),
    # The posterior variance of the DDPM sampler; "learned" ones need a second output.
    "variance_type": one_of(
        None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"
    ),
}


#: Parameters of options that are off, and of solvers of diffusers.
_WITHOUT_EFFECT = (
    "clip_sample_range",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "skip_prk_steps",
    "time_shift_type",
)


@dataclasses.dataclass(frozen=True)
class Schedule(Config, label="noise schedule", only=_OFF, ignored=("_*", *_WITHOUT_EFFECT)):
    """A training schedule and its use in sampling; the fields of a `scheduler_config.json`.

    The defaults are those of diffusers for a file without the field.

    Attributes:
        num_train_timesteps: T; the network was trained on the timesteps 0 .. T - 1.
        beta_start: variance of the noise that timestep 0 adds.
        beta_end: variance of the noise that timestep T - 1 adds.
        beta_schedule: `linear`, or `scaled_linear` (linear in the square root of beta).
        prediction_type: the network's prediction, `epsilon` or `v_prediction`.
        timestep_spacing: which timesteps a solver uses (arXiv 2305.08891, table 2); None is the
            solver's own choice: `leading` for DDIM, `linspace` for the others.
        steps_offset: added to every timestep of the `leading` spacing.
        set_alpha_to_one: whether DDIM's last step ends at a = 1; if false, it ends at a_0.
        final_sigmas_type: whether the last step of Euler and DPM-Solver++ ends without noise
            (`zero`) or at the noise of timestep 0 (`sigma_min`).
        lower_order_final: whether DPM-Solver++'s last step is of first order with fewer than 15
            steps.
        euler_at_final: whether DPM-Solver++'s last step is always of first order.
    """

    num_train_timesteps: int = field(COUNT, 1000)
    beta_start: float = field(NUMBER, 0.0001)
    beta_end: float = field(NUMBER, 0.02)
    beta_schedule: str = field(one_of("scaled_linear", "linear"), "linear")
    prediction_type: str = field(one_of("epsilon", "v_prediction"), "epsilon")
    timestep_spacing: str | None = field(optional(one_of("leading", "trailing", "linspace")), None)
    steps_offset: int = field(require("an integer", lambda value: type(value) is int), 0)
    set_alpha_to_one: bool = field(FLAG, True)
    final_sigmas_type: str = field(one_of("zero", "sigma_min"), "zero")
    lower_order_final: bool = field(FLAG, True)
    euler_at_final: bool = field(FLAG, False)

    def misfits(self) -> list[str]:
        """The variances must lie in (0, 1) and not decrease."""
        if 0 < self.beta_start <= self.beta_end < 1:
            return []
        return [
            f"beta_start and beta_end are {self.beta_start} and {self.beta_end}, expected "
            "0 < beta_start <= beta_end < 1"
        ]

    @functools.cached_property
    def alphas_cumprod(self) -> Float[np.ndarray, "T"]:
        """a_t of every training timestep, [T], fp32.

        Rounded to fp32 where diffusers rounds: 1 - a_0 is about 1e-3, so the last bits of a matter,
        and checkpoints were trained with exactly these numbers.
        """
        if self.beta_schedule == "linear":
            betas = _linspace(self.beta_start, self.beta_end, self.num_train_timesteps)
        else:
            roots = _linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_train_timesteps)
            betas = roots**2
        alphas = np.float32(1) - betas
        return np.cumprod(alphas, dtype=np.float64).astype(np.float32)


def _linspace(start: float, end: float, count: int) -> Float[np.ndarray, " T"]:
    """`count` equidistant numbers in fp32, computed from the nearer end, as in PyTorch."""
    if count == 1:
        return np.array([start], np.float32)
    first, last = np.float32(start), np.float32(end)
    # PyTorch's fused multiply-add rounds once; so does fp64 arithmetic with a final rounding.
    step = np.float64((last - first) / np.float32(count - 1))
    index = np.arange(count)
    return np.where(
        index < count // 2, first + step * index, last - step * (count - 1 - index)
    ).astype(np.float32)


def add_noise(
    latents: Float[Array, "B *rest"],
    noise: Float[Array, "B *rest"],
    alpha_bar: Float[Array, " B"],
) -> Float[Array, "B *rest"]:
    """x_t = sqrt(a_t) x0 + sqrt(1 - a_t) e; `alpha_bar` has the a_t of each sample."""
    alpha_bar = _over(alpha_bar, latents)
    return jnp.sqrt(alpha_bar) * latents + jnp.sqrt(1 - alpha_bar) * noise


def velocity(
    latents: Float[Array, "B *rest"],
    noise: Float[Array, "B *rest"],
    alpha_bar: Float[Array, " B"],
) -> Float[Array, "B *rest"]:
    """v_t = sqrt(a_t) e - sqrt(1 - a_t) x0; `alpha_bar` has the a_t of each sample."""
    alpha_bar = _over(alpha_bar, latents)
    return jnp.sqrt(alpha_bar) * noise - jnp.sqrt(1 - alpha_bar) * latents


def target(
    schedule: Schedule,
    latents: Float[Array, "B *rest"],
    noise: Float[Array, "B *rest"],
    alpha_bar: Float[Array, " B"],
) -> Float[Array, "B *rest"]:
    """The training target of the network for `add_noise(latents, noise, alpha_bar)`."""
    if schedule.prediction_type == "v_prediction":
        return velocity(latents, noise, alpha_bar)
    return noise


def diffuse(
    schedule: Schedule,
    latents: Float[Array, "B *rest"],
    noise: Float[Array, "B *rest"],
    timesteps: Int[Array, " B"],
) -> tuple[Float[Array, "B *rest"], Float[Array, "B *rest"]]:
    """The noisy latents x_t at a training timestep of each sample, and the network's target."""
    alpha_bar = jnp.asarray(schedule.alphas_cumprod)[timesteps]
    return add_noise(latents, noise, alpha_bar), target(schedule, latents, noise, alpha_bar)


def _over(per_sample: Float[Array, " B"], array: Float[Array, "B *_"]) -> Float[Array, "B *_"]:
    """One number per sample, in a shape that broadcasts against `array`."""
    return per_sample.reshape(per_sample.shape[0], *(1,) * (array.ndim - 1))
