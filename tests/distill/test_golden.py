"""One step of a world that is written down, number by number."""

import jax
import numpy as np
import optax

from pea_jax.distill.losses import DistillSettings
from pea_jax.distill.state import init_train_state
from pea_jax.distill.step import make_train_step
from pea_jax.optim import make_optimizer
from tests.distill import fakes, tiny

REFERENCE = {}

ADVICE = """
A number of one train step has moved. If the change was not meant to change what is computed (a
refactoring, another version of a library), it is a bug: find it, starting from the first metric
that differs (loss_native: VAE, noise or schedule; loss_output alone: the text towers or the
adapter; one feature: that block of the UNet; grad_norm alone: a gradient that is stopped or let
through; the update alone: the optimiser). If it was meant to, and tests/parity agrees with it, put
the new numbers into REFERENCE and say in CHANGELOG.md that runs are not continued exactly.
"""


def test_one_step_gives_the_numbers_that_were_written_down():
    networks, params, frozen = tiny.world()
    tx, _ = make_optimizer(1e-2, weight_decay=0.1, clip_norm=0.05)
    train_step = make_train_step(
        networks, fakes.schedule(), DistillSettings(prompt_drop=0.5, noise_offset=0.1), tx
    )
    state, metrics = fakes.quick(train_step)(
        init_train_state(params, tx), frozen, tiny.make_batch(2, 4), jax.random.key(0)
    )
    change = jax.tree.map(lambda new, old: new - old, state.params, params)
    got = {name: float(value) for name, value in metrics.items()}
    got["update"] = float(optax.tree.norm(change))
    assert got.keys() == REFERENCE.keys(), f"{ADVICE}\ngot {got}"
    moved = {
        name: f"{got[name]:.7g}, was {value:.7g}"
        for name, value in REFERENCE.items()
        if not np.isclose(got[name], value, rtol=2e-4, atol=0)
    }
    assert not moved, f"{ADVICE}\n{moved}"
