"""The optimizer of the adapter: AdamW under a linear warm-up and a polynomial decay."""

import jax
import optax


def make_schedule(
    learning_rate: float,
    *,
    end_learning_rate: float = 0.0,
    warmup_steps: int = 0,
    decay_steps: int | None = None,
    power: float = 1.0,
) -> optax.Schedule:
    """The learning rate of a step, counted from 0.

        peak * step / warmup                                                 step < warmup
        end + (peak - end) * (1 - (step - warmup) / (decay - warmup))^power  warmup <= step < decay
        end                                                                  decay <= step

    The schedule of transformers' `get_polynomial_decay_schedule_with_warmup`, which the authors
    use (method.md, "Official training settings").

    Args:
        learning_rate: the peak.
        end_learning_rate: what it decays to.
        warmup_steps: length of the warm-up, whose first step has a rate of zero; 0 has none.
        decay_steps: the step at which the end is reached, the warm-up included; None never decays.
        power: of the decay; 1 is linear.

    Raises:
        ValueError: names every value that is out of range.
    """
    problems = []
    if not learning_rate > 0:
        problems.append(f"learning_rate must be positive, got {learning_rate}")
    if not 0 <= end_learning_rate <= learning_rate:
        problems.append(
            f"end_learning_rate must be in [0, learning_rate = {learning_rate}], "
            f"got {end_learning_rate}"
        )
    if warmup_steps < 0:
        problems.append(f"warmup_steps must not be negative, got {warmup_steps}")
    if decay_steps is not None and decay_steps <= warmup_steps:
        problems.append(
            f"decay_steps counts from step 0 and must exceed warmup_steps = {warmup_steps}, "
            f"got {decay_steps}"
        )
    if not power > 0:
        problems.append(f"power must be positive, got {power}")
    if problems:
        raise ValueError("learning rate schedule: " + "; ".join(problems))

    if decay_steps is None:
        decay = optax.constant_schedule(learning_rate)
    else:
        decay = optax.polynomial_schedule(
            learning_rate, end_learning_rate, power, decay_steps - warmup_steps
        )
    if not warmup_steps:
        return decay
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, decay], [warmup_steps])


def make_optimizer(
    learning_rate: float,
    *,
    end_learning_rate: float = 0.0,
    warmup_steps: int = 0,
    decay_steps: int | None = None,
    power: float = 1.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW (Loshchilov and Hutter 2019) after clipping, and its schedule for the log.

    Weight decay is decoupled, scaled by the learning rate, and applies to matrices alone: norms and
    biases are not decayed.

    Args:
        learning_rate: the peak; with the four after it the arguments of `make_schedule`.
        end_learning_rate: see `make_schedule`.
        warmup_steps: see `make_schedule`.
        decay_steps: see `make_schedule`.
        power: see `make_schedule`.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the root of the second moment.
        weight_decay: 0 has none, as the authors' code in effect has.
        clip_norm: the largest global norm of the gradient; 0 does not clip.

    Returns:
        The gradient transformation, and the function from a step to its learning rate.

    Raises:
        ValueError: names every value that cannot be; the schedule's are raised together, first.
    """
    schedule = make_schedule(
        learning_rate,
        end_learning_rate=end_learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=decay_steps,
        power=power,
    )
    problems = [
        f"{name} must be in [0, 1), got {beta}"
        for name, beta in (("beta1", beta1), ("beta2", beta2))
        if not 0 <= beta < 1
    ]
    if not epsilon > 0:
        problems.append(f"epsilon must be positive, got {epsilon}")
    problems += [
        f"{name} must not be negative, got {value}"
        for name, value in (("weight_decay", weight_decay), ("clip_norm", clip_norm))
        if not value >= 0
    ]
    if problems:
        raise ValueError("optimizer: " + "; ".join(problems))

    adamw = optax.adamw(
        schedule, b1=beta1, b2=beta2, eps=epsilon, weight_decay=weight_decay, mask=_matrices
    )
    if not clip_norm:
        return adamw, schedule
    return optax.chain(optax.clip_by_global_norm(clip_norm), adamw), schedule


def _matrices(params: optax.Params) -> optax.Params:
    """True for the parameters that weight decay applies to."""
    return jax.tree.map(lambda parameter: parameter.ndim > 1, params)
