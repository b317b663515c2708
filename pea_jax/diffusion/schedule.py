"""The noise schedule: how much of a latent is noise at each training timestep.

With x0 the clean latents, e standard normal noise and a_t the cumulative product of 1 - beta,

    x_t = sqrt(a_t) x0 + sqrt(1 - a_t) e                  (DDPM, arXiv 2006.11239, eq. 4)
    v_t = sqrt(a_t) e  - sqrt(1 - a_t) x0                 (velocity, arXiv 2202.00512, app. D)

A network predicts e ("epsilon": SD 1.x, SDXL) or v ("v_prediction": SD 2.1).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

BETA_SCHEDULES = ("scaled_linear", "linear")
PREDICTION_TYPES = ("epsilon", "v_prediction")
TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")
FINAL_SIGMAS_TYPES = ("zero", "sigma_min")

# Scheduler classes of diffusers whose training schedule is the one above. Which of them a folder
# names does not matter: it is a default solver, and ours is chosen when sampling.
SCHEDULER_CLASSES = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
)

# Options of those classes that are not built here: the values that mean "off".
_OFF: dict[str, tuple[Any, ...]] = {
    "algorithm_type": ("dpmsolver++",),
    "clip_sample": (False,),
    "flow_shift": (1, 1.0),
    "interpolation_type": ("linear",),
    "lambda_min_clipped": (-float("inf"),),
    "rescale_betas_zero_snr": (False,),
    "sigma_max": (None,),
    "sigma_min": (None,),
    "solver_order": (2,),
    "solver_type": ("midpoint",),
    "thresholding": (False,),
    "timestep_type": ("discrete",),
    "trained_betas": (None,),
    "use_beta_sigmas": (False, None),
    "use_dynamic_shifting": (False,),
    "use_exponential_sigmas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_karras_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    # The DDPM sampler's choice of a posterior variance; "learned" ones need a second output.
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}

# Parameters of options that are off, and of solvers that are not ours.
_WITHOUT_EFFECT = frozenset(
    {
        "clip_sample_range",
        "dynamic_thresholding_ratio",
        "sample_max_value",
        "skip_prk_steps",
        "time_shift_type",
    }
)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A training schedule and how sampling visits it; the fields of a `scheduler_config.json`.

    The defaults are those of diffusers for a file that leaves a field out.

    Attributes:
        num_train_timesteps: T; the network has seen the timesteps 0 .. T - 1.
        beta_start: variance of the noise that timestep 0 adds.
        beta_end: variance of the noise that timestep T - 1 adds.
        beta_schedule: `linear`, or `scaled_linear` (linear in the square root of beta).
        prediction_type: what the network predicts, `epsilon` or `v_prediction`.
        timestep_spacing: which timesteps a solver visits (arXiv 2305.08891, table 2); None leaves
            it to the solver: `leading` for DDIM, `linspace` for the others.
        steps_offset: added to every timestep of the `leading` spacing.
        set_alpha_to_one: DDIM's last step arrives at a = 1 if true, else at a_0.
        final_sigmas_type: Euler's and DPM-Solver++'s last step arrives at no noise (`zero`) or at
            the noise of timestep 0 (`sigma_min`).
        lower_order_final: DPM-Solver++ takes a first-order last step when it has fewer than 15.
        euler_at_final: DPM-Solver++ takes a first-order last step.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    prediction_type: str = "epsilon"
    timestep_spacing: str | None = None
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    final_sigmas_type: str = "zero"
    lower_order_final: bool = True
    euler_at_final: bool = False

    def __post_init__(self) -> None:
        choices = {
            "beta_schedule": BETA_SCHEDULES,
            "prediction_type": PREDICTION_TYPES,
            "timestep_spacing": (None, *TIMESTEP_SPACINGS),
            "final_sigmas_type": FINAL_SIGMAS_TYPES,
        }
        problems = [
            f"{name} is {getattr(self, name)!r}, expected one of {allowed}"
            for name, allowed in choices.items()
            if getattr(self, name) not in allowed
        ]
        if self.num_train_timesteps < 1:
            problems.append(f"num_train_timesteps is {self.num_train_timesteps}, expected 1 or up")
        if not 0 < self.beta_start <= self.beta_end < 1:
            problems.append(
                f"beta_start and beta_end are {self.beta_start} and {self.beta_end}, expected "
                "0 < beta_start <= beta_end < 1"
            )
        if problems:
            raise ValueError("unsupported noise schedule: " + "; ".join(problems))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "Schedule":
        """The schedule of a `scheduler_config.json`.

        Args:
            config: the file's content. Its `_class_name` may be any of `SCHEDULER_CLASSES`.

        Raises:
            ValueError: naming every entry that is unknown or has an unsupported value.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        problems = []
        name = config.get("_class_name", SCHEDULER_CLASSES[0])
        if name not in SCHEDULER_CLASSES:
            problems.append(f"_class_name is {name!r}, expected one of {SCHEDULER_CLASSES}")
        for entry, value in config.items():
            if entry.startswith("_") or entry in fields or entry in _WITHOUT_EFFECT:
                continue
            if entry not in _OFF:
                problems.append(f"{entry} is {value!r}, which is not an entry known here")
            elif value not in _OFF[entry]:
                expected = " or ".join(repr(off) for off in _OFF[entry])
                problems.append(f"{entry} is {value!r}, only {expected} is supported")
        if problems:
            raise ValueError("unsupported scheduler_config.json: " + "; ".join(problems))
        return cls(**{entry: value for entry, value in config.items() if entry in fields})

    @functools.cached_property
    def alphas_cumprod(self) -> Float[np.ndarray, "T"]:
        """a_t of every training timestep, [T], fp32.

        Rounded to fp32 where diffusers rounds: 1 - a_0 is about 1e-3, so that the last bits of a
        show in it, and checkpoints were trained with these very numbers.
        """
        if self.beta_schedule == "linear":
            betas = _linspace(self.beta_start, self.beta_end, self.num_train_timesteps)
        else:
            roots = _linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_train_timesteps)
            betas = roots**2
        alphas = np.float32(1) - betas
        return np.cumprod(alphas, dtype=np.float64).astype(np.float32)


def _linspace(start: float, end: float, count: int) -> Float[np.ndarray, " T"]:
    """`count` equidistant numbers in fp32, counted from the nearer end, as PyTorch does."""
    if count == 1:
        return np.array([start], np.float32)
    first, last = np.float32(start), np.float32(end)
    # PyTorch's fused multiply-add rounds once, like fp64 that is rounded at the end.
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
    """x_t = sqrt(a_t) x0 + sqrt(1 - a_t) e, with `alpha_bar` the a_t of each sample."""
    alpha_bar = _over(alpha_bar, latents)
    return jnp.sqrt(alpha_bar) * latents + jnp.sqrt(1 - alpha_bar) * noise


def velocity(
    latents: Float[Array, "B *rest"],
    noise: Float[Array, "B *rest"],
    alpha_bar: Float[Array, " B"],
) -> Float[Array, "B *rest"]:
    """v_t = sqrt(a_t) e - sqrt(1 - a_t) x0, with `alpha_bar` the a_t of each sample."""
    alpha_bar = _over(alpha_bar, latents)
    return jnp.sqrt(alpha_bar) * noise - jnp.sqrt(1 - alpha_bar) * latents


def target(
    schedule: Schedule,
    latents: Float[Array, "B *rest"],
    noise: Float[Array, "B *rest"],
    alpha_bar: Float[Array, " B"],
) -> Float[Array, "B *rest"]:
    """What the network is to predict for `add_noise(latents, noise, alpha_bar)`."""
    if schedule.prediction_type == "v_prediction":
        return velocity(latents, noise, alpha_bar)
    return noise


def _over(per_sample: Float[Array, " B"], array: Float[Array, "B *_"]) -> Float[Array, "B *_"]:
    """One number a sample, shaped to multiply `array`."""
    return per_sample.reshape(per_sample.shape[0], *(1,) * (array.ndim - 1))
