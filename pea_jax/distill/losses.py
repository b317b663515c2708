"""The terms of the loss, each [B], and the one place where they are weighted and averaged.

    L = native_weight  * mean_i z_i * mse(e_s, target)                 native: diffusion
      + output_weight  * mean_i (1 - z_i) * mse(e_s, e_t)              parallel: the output
      + feature_weight * sum_k mean_i (1 - z_i) * mse(F_s,k, F_t,k)    parallel: the features

z_i is 1 for a native pair and 0 for a parallel one, e is the UNet's output, F_k the output of its
block k, s the student and t the teacher; mean_i is over the whole batch. Without hybrid training
every term applies to every row. Source: PEA-Diffusion (arXiv 2311.17086).
"""

import dataclasses
import math
from collections.abc import Mapping

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from pea_jax.distill.batch import NATIVE, PARALLEL

#: Scalars; and the two of `BY_LANGUAGE`, where there are several languages.
Metrics = dict[str, Float[Array, "..."]]

#: By language, [languages]: the sum of its rows' losses, and the number of these rows. Summed over
#: several steps, their quotient is the mean over all rows.
BY_LANGUAGE = ("language_loss", "language_rows")


@dataclasses.dataclass(frozen=True)
class DistillSettings:
    """The choices that the method leaves open.

    A weight of zero removes its term from the program, with everything that only this term needs:
    the teacher without a distillation term, and the rows of a part without a term.

    Attributes:
        hybrid: native rows learn from their image, parallel rows from the teacher. False: all rows
            are parallel and learn from both.
        native_weight: weight of the diffusion loss.
        output_weight: weight of output distillation.
        feature_weight: weight of feature distillation, the sum over all blocks.
        prompt_drop: probability that a sample's tokens are replaced by those of "".
        noise_offset: standard deviation of an offset of the noise, one value a sample and channel;
            0 adds none.

    Raises:
        ValueError: names every value that is out of range.
    """

    hybrid: bool = True
    native_weight: float = 1.0
    output_weight: float = 1.0
    feature_weight: float = 0.1
    prompt_drop: float = 0.1
    noise_offset: float = 0.0

    def __post_init__(self):
        """Raise ValueError for every field that is out of range."""
        weights = ("native_weight", "output_weight", "feature_weight")
        problems = [
            f"{name} must not be negative, got {getattr(self, name)}"
            for name in (*weights, "noise_offset")
            if not getattr(self, name) >= 0
        ]
        if not problems and not any(getattr(self, name) for name in weights):
            problems.append(f"one of {', '.join(weights)} must be positive, all are 0")
        if not 0 <= self.prompt_drop <= 1:
            problems.append(f"prompt_drop must be in [0, 1], got {self.prompt_drop}")
        if problems:
            raise ValueError("DistillSettings: " + "; ".join(problems))

    @property
    def diffuses(self) -> bool:
        """Whether there is a diffusion term."""
        return self.native_weight > 0

    @property
    def distils(self) -> bool:
        """Whether a teacher is needed."""
        return self.output_weight > 0 or self.feature_weight > 0


def squared_error(
    prediction: Float[Array, "B *rest"], target: Float[Array, "B *rest"]
) -> Float[Array, "B"]:
    """Mean squared difference over all axes except the batch, in float32 for any input dtype."""
    difference = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    return jnp.mean(jnp.square(difference), axis=tuple(range(1, difference.ndim)))


def feature_errors(
    student: Mapping[str, Float[Array, "B _ _ _"]], teacher: Mapping[str, Float[Array, "B _ _ _"]]
) -> dict[str, Float[Array, "B"]]:
    """The squared error of every block, by its name.

    Raises:
        ValueError: student and teacher differ in their blocks.
    """
    if list(student) != list(teacher):
        raise ValueError(
            f"features: the student has blocks {list(student)}, the teacher {list(teacher)}"
        )
    return {name: squared_error(student[name], teacher[name]) for name in student}


def total(
    settings: DistillSettings,
    batch_size: int,
    *,
    native: Float[Array, "N"] | None = None,
    output: Float[Array, "P"] | None = None,
    features: Mapping[str, Float[Array, "P"]] | None = None,
    languages: Mapping[str, Int[Array, "_"]] | None = None,
    language_count: int = 1,
) -> tuple[Float[Array, ""], Metrics]:
    """The loss, and each of its terms.

    Args:
        settings: the weights.
        batch_size: rows of the whole batch; every mean is over these.
        native: diffusion errors of the rows that have this term; None without the term.
        output: output errors of the rows that have a teacher; None without the term.
        features: their feature errors by block; None without the term.
        languages: language numbers, from 0, of the rows that learn, by part.
        language_count: number of languages; with one there are no metrics by language.

    Returns:
        The loss and the metrics: "loss"; "loss_native", "loss_output" and "loss_feature", before
        their weights; "feature/<block>" for every block; and `BY_LANGUAGE`, where a row's loss is
        the weighted sum of its own terms. A term that was not computed has no entry.
    """

    def mean(errors: Float[Array, "_"]) -> Float[Array, ""]:
        return jnp.sum(errors) / batch_size

    metrics: Metrics = {}
    loss = jnp.zeros((), jnp.float32)
    if native is not None:
        metrics["loss_native"] = mean(native)
        loss += settings.native_weight * metrics["loss_native"]
    if output is not None:
        metrics["loss_output"] = mean(output)
        loss += settings.output_weight * metrics["loss_output"]
    if features is not None:
        blocks = {f"feature/{name}": mean(errors) for name, errors in features.items()}
        metrics["loss_feature"] = sum(blocks.values(), jnp.zeros((), jnp.float32))
        loss += settings.feature_weight * metrics["loss_feature"]
        metrics |= blocks
    if language_count > 1:
        row_losses = _row_losses(settings, native, output, features)
        metrics |= _by_language(row_losses, languages or {}, language_count)
    return loss, {"loss": loss, **metrics}


def _row_losses(
    settings: DistillSettings,
    native: Float[Array, "N"] | None,
    output: Float[Array, "P"] | None,
    features: Mapping[str, Float[Array, "P"]] | None,
) -> dict[str, Float[Array, "_"]]:
    """The weighted sum of each row's own terms, by part."""
    terms = []
    if native is not None:
        terms.append((NATIVE if settings.hybrid else PARALLEL, settings.native_weight * native))
    if output is not None:
        terms.append((PARALLEL, settings.output_weight * output))
    terms += [(PARALLEL, settings.feature_weight * errors) for errors in (features or {}).values()]
    losses: dict[str, Float[Array, "_"]] = {}
    for part, weighted in terms:
        losses[part] = losses[part] + weighted if part in losses else weighted
    return losses


def _by_language(
    losses: Mapping[str, Float[Array, "_"]], languages: Mapping[str, Int[Array, "_"]], count: int
) -> Metrics:
    """Sum of losses and number of rows of every language, over both parts."""
    sums, rows = jnp.zeros(count, jnp.float32), jnp.zeros(count, jnp.float32)
    for part, errors in losses.items():
        own = languages[part][:, None] == jnp.arange(count)[None]
        sums += jnp.sum(jnp.where(own, errors[:, None], 0.0), axis=0)
        rows += jnp.sum(own, axis=0, dtype=jnp.float32)
    return dict(zip(BY_LANGUAGE, (sums, rows), strict=True))


def require_finite(metrics: Mapping[str, ArrayLike], step: int) -> None:
    """Raises FloatingPointError that names every metric that is not finite.

    Call it on the fetched metrics of a step before its state is saved.
    """
    broken = {name: float(value) for name, value in metrics.items() if not math.isfinite(value)}
    if broken:
        listed = ", ".join(f"{name} = {value}" for name, value in broken.items())
        raise FloatingPointError(f"step {step}: not finite: {listed}")
