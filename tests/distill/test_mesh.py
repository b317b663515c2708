"""One device or eight: the same losses and gradients, and no activation sent between devices."""

import jax
import numpy as np
import optax
import pytest

from pea_jax.distill.state import init_train_state
from pea_jax.distill.step import LossAndGradient, jit_train_step, make_train_step
from pea_jax.runtime import parallel
from pea_jax.tasks.preflight import hlo, topology
from tests.distill import fakes, tiny
from tests.distill.collectives import canonical, collectives
from tests.distill.one_step import KEY, NATIVE, PARALLEL, SETTINGS, WORLDS, one_step, place
from tests.libtpu import needs_libtpu

#: World, devices of the two axes, slices of a device's rows.
MESHES = [
    ("fake", 8, 1, 1),
    ("fake", 4, 2, 1),
    ("fake", 2, 4, 1),
    ("fake", 1, 1, 4),
    ("fake", 2, 2, 2),
    ("tiny", 2, 4, 1),
    ("gathering", 2, 4, 1),
    ("slicing", 2, 4, 1),
]


@pytest.mark.parametrize(("name", "data", "fsdp", "slices"), MESHES)
def test_losses_and_gradients_are_those_of_one_device(name, data, fsdp, slices):
    """Noise that depends on the devices or the slices, a mean over a device's own rows, or rows
    that are matched with another row's teacher, would change them."""
    metrics, gradient, _ = one_step(name, data, fsdp, slices)
    wanted_metrics, wanted_gradient, _ = one_step("fake" if name == "fake" else "tiny", 1, 1)
    assert metrics.keys() == wanted_metrics.keys()
    for term, value in wanted_metrics.items():
        np.testing.assert_allclose(metrics[term], value, rtol=2e-5, err_msg=term)
    norm = float(wanted_metrics["grad_norm"])
    assert gradient.keys() == wanted_gradient.keys()
    for key, want in wanted_gradient.items():
        np.testing.assert_allclose(gradient[key], want, rtol=1e-3, atol=1e-5 * norm, err_msg=key)


@pytest.mark.parametrize(
    ("name", "data", "fsdp", "slices"), [mesh for mesh in MESHES if mesh[1] * mesh[2] > 1]
)
def test_only_weights_and_gradients_are_sent_between_devices(name, data, fsdp, slices):
    """Rows stay on their device: a batch that is laid out otherwise, or a partitioner that splits a
    layer over the axis of its weights, sends activations, which grow with the batch."""
    _, params, frozen = WORLDS[name].world()
    weights = {canonical(leaf.shape) for leaf in jax.tree.leaves(frozen)}
    trained = {canonical(leaf.shape) for leaf in jax.tree.leaves(params)}
    *_, text = one_step(name, data, fsdp, slices)
    sent = collectives(text)
    gathered = sent.pop("all-gather", set())
    summed = sent.pop("all-reduce")
    assert sent == {}
    assert gathered <= weights
    assert bool(gathered) == (fsdp > 1)
    by_language = canonical((fakes.LANGUAGES,))
    assert summed <= trained | _empty_prompt_shapes(params) | {(), by_language}


def _empty_prompt_shapes(params):
    """The empty prompt's tokens through the adapter: every row adds to their gradient."""
    widths = {size for leaf in jax.tree.leaves(params) for size in leaf.shape}
    return {canonical((fakes.TOKENS, width)) for width in widths}


@needs_libtpu
def test_the_tpu_compiler_gathers_anew_in_every_slice():
    """The weights are those of every slice. A compiler that sees it gathers them before the loop,
    and keeps the whole UNet through it."""
    tx = optax.sgd(1.0)
    mesh = parallel.make_mesh(2, 2, topology.devices("v5e:2x2"))
    rule, whole = parallel.parameter_sharding(mesh, min_size=1), parallel.replicated(mesh)
    networks, params, frozen = tiny.world(whole)
    state, frozen, batch, key = jax.eval_shape(
        lambda *trees: trees,
        *(init_train_state(params, tx), frozen, tiny.make_batch(NATIVE, PARALLEL), KEY),
    )
    unet = jax.tree.map(
        lambda leaf: parallel.place(leaf, rule("", leaf.shape) if leaf.ndim > 1 else whole),
        frozen["unet"],
    )
    state, frozen, key = parallel.place((state, frozen, key), whole)
    batch = parallel.place(batch, parallel.batch_sharding(mesh))
    objective = LossAndGradient(
        networks,
        fakes.schedule(),
        SETTINGS,
        accumulation_steps=2,
        languages=fakes.LANGUAGES,
    )
    train_step = make_train_step(objective, tx)
    step = jit_train_step(train_step, mesh, gathering=("unet",))
    lowered = step.lower(state, {**frozen, "unet": unet}, batch, key)
    text = lowered.compile({"exec_time_optimization_effort": -1.0}).as_text()
    runs, once = (counts.collectives["all-gather"][0] for counts in hlo.count(text))
    assert runs == 2 * once


def test_a_layout_that_ignores_the_devices_would_be_seen():
    """The same program with all native rows first, then all parallel rows: the check above finds
    what that sends."""
    tx = optax.sgd(1.0)
    mesh = parallel.make_mesh(8, 1)
    networks, state, frozen, batch = place(fakes, mesh, tx)
    whole = parallel.replicated(mesh)
    step = jax.jit(
        make_train_step(LossAndGradient(networks, fakes.schedule(), SETTINGS), tx),
        in_shardings=(whole, None, parallel.batch_sharding(mesh), whole),
        out_shardings=(whole, whole),
    )
    sent = collectives(step.lower(state, frozen, batch, KEY).compile(fakes.QUICK).as_text())
    assert sent.keys() - {"all-reduce"}
