"""One device or eight: the same losses and gradients, and no activation sent between devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pea_jax import parallel
from pea_jax.distill.losses import DistillSettings
from pea_jax.distill.state import init_train_state
from pea_jax.distill.step import jit_train_step, make_train_step
from tests.distill import fakes, tiny
from tests.distill.collectives import canonical, collectives

WORLDS = {"fake": fakes, "tiny": tiny}
SETTINGS = DistillSettings(prompt_drop=0.5)
KEY = jax.random.key(7)
NATIVE, PARALLEL = 8, 16


def place(world, mesh, tx):
    """State, frozen weights and batch where a run would have them; all that can be split is."""
    networks, params, frozen = world.world()
    rule = parallel.parameter_sharding(mesh, min_size=1)
    whole = parallel.replicated(mesh)
    empty = frozen.pop("empty")
    frozen = jax.tree.map(lambda leaf: jax.device_put(leaf, rule("", leaf.shape)), frozen)
    frozen["empty"] = jax.device_put(empty, whole)
    state = jax.device_put(init_train_state(params, tx), whole)
    batch = parallel.to_global(world.make_batch(NATIVE, PARALLEL), mesh)
    return networks, state, frozen, batch


@functools.cache
def run(name, data, fsdp):
    """Metrics, gradient and HLO text of one step of a world on a mesh.

    With plain descent at rate 1 from params, the gradient is what the step took away.
    """
    world = WORLDS[name]
    tx = optax.sgd(1.0)
    mesh = parallel.make_mesh(data, fsdp, jax.devices()[: data * fsdp])
    networks, state, frozen, batch = place(world, mesh, tx)
    before = jax.tree.map(np.asarray, state.params)
    step = jit_train_step(make_train_step(networks, fakes.schedule(), SETTINGS, tx), mesh)
    compiled = step.lower(state, frozen, batch, KEY).compile(fakes.QUICK)
    state, metrics = compiled(state, frozen, batch, KEY)
    gradient = jax.tree.map(lambda old, new: old - np.asarray(new), before, state.params)
    return jax.device_get(metrics), gradient, compiled.as_text()


MESHES = [("fake", 8, 1), ("fake", 4, 2), ("fake", 2, 4), ("tiny", 2, 4)]


@pytest.mark.parametrize(("name", "data", "fsdp"), MESHES)
def test_losses_and_gradients_are_those_of_one_device(name, data, fsdp):
    """Noise that depends on the devices, a mean over a device's own rows, or rows that are matched
    with another row's teacher, would change them."""
    metrics, gradient, _ = run(name, data, fsdp)
    wanted_metrics, wanted_gradient, _ = run(name, 1, 1)
    assert metrics.keys() == wanted_metrics.keys()
    for term, value in wanted_metrics.items():
        np.testing.assert_allclose(metrics[term], value, rtol=2e-5, err_msg=term)
    norm = float(wanted_metrics["grad_norm"])
    for path, want in jax.tree_util.tree_leaves_with_path(wanted_gradient):
        got = functools.reduce(lambda tree, part: _child(tree, part), path, gradient)
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5 * norm, err_msg=str(path))


def _child(tree, part):
    return tree[part.key] if hasattr(part, "key") else tree[...]


@pytest.mark.parametrize(("name", "data", "fsdp"), MESHES)
def test_only_weights_and_gradients_are_sent_between_devices(name, data, fsdp):
    """Rows stay on their device: a batch that is laid out otherwise, or a partitioner that splits a
    layer over the axis of its weights, sends activations, which grow with the batch."""
    _, params, frozen = WORLDS[name].world()
    weights = {canonical(leaf.shape) for leaf in jax.tree.leaves(frozen)}
    trained = {canonical(leaf.shape) for leaf in jax.tree.leaves(params)}
    *_, text = run(name, data, fsdp)
    sent = collectives(text)
    gathered = sent.pop("all-gather", set())
    summed = sent.pop("all-reduce")
    assert sent == {}
    assert gathered <= weights
    assert bool(gathered) == (fsdp > 1)
    assert summed <= trained | _empty_prompt_shapes(params) | {()}


def _empty_prompt_shapes(params):
    """The empty prompt's tokens through the adapter: every row adds to their gradient."""
    widths = {size for leaf in jax.tree.leaves(params) for size in leaf.shape}
    return {canonical((fakes.TOKENS, width)) for width in widths}


def test_a_layout_that_ignores_the_devices_would_be_seen():
    """The same program with all native rows first, then all parallel rows: the check above finds
    what that sends."""
    tx = optax.sgd(1.0)
    mesh = parallel.make_mesh(8, 1)
    networks, state, frozen, batch = place(fakes, mesh, tx)
    whole = parallel.replicated(mesh)
    step = jax.jit(
        make_train_step(networks, fakes.schedule(), SETTINGS, tx),
        in_shardings=(whole, None, parallel.batch_sharding(mesh), whole),
        out_shardings=(whole, whole),
    )
    sent = collectives(step.lower(state, frozen, batch, KEY).compile(fakes.QUICK).as_text())
    assert sent.keys() - {"all-reduce"}


@pytest.mark.parametrize(("native", "count"), [(4, 16), (8, 12), (4, 12)])
def test_parts_that_do_not_divide_the_shards_get_one_clear_error(native, count):
    """Before jax says what it thinks of the shape of an argument of a jitted function."""
    tx = optax.sgd(1.0)
    networks, params, frozen = fakes.world()
    mesh = parallel.make_mesh(8, 1)
    step = jit_train_step(make_train_step(networks, fakes.schedule(), SETTINGS, tx), mesh)
    batch = jax.tree.map(jnp.asarray, fakes.make_batch(native, count))
    with pytest.raises(ValueError, match="8 data shards of the mesh") as error:
        step(init_train_state(params, tx), frozen, batch, KEY)
    named = dict(re.findall(r"(\w+) has (\d+) rows", str(error.value)))
    uneven = {"native": native, "parallel": count}
    assert named == {name: str(rows) for name, rows in uneven.items() if rows % 8}
