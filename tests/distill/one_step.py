"""One step of a world on a mesh, compiled once for all the tests that look at it."""

import functools
from unittest import mock

import jax
import numpy as np
import optax
from flax import nnx

from pea_jax.distill.losses import DistillSettings
from pea_jax.distill.state import init_train_state
from pea_jax.distill.step import LossAndGradient, jit_train_step, make_train_step
from pea_jax.models import latents
from pea_jax.runtime import parallel
from pea_jax.weights import names
from tests.distill import fakes, tiny

#: "gathering" is "tiny" with a UNet that gathers its weights where it uses them, "slicing" with a
#: VAE that encodes one picture of a device after another.
WORLDS = {"fake": fakes, "tiny": tiny, "gathering": tiny, "slicing": tiny}
SETTINGS = DistillSettings(prompt_drop=0.5)
KEY = jax.random.key(7)
NATIVE, PARALLEL = 8, 16


def place(world, mesh, tx, gathering=False):
    """State, frozen weights and batch where a run would have them; all that can be split is."""
    rule = parallel.parameter_sharding(mesh, min_size=1)
    whole = parallel.replicated(mesh)
    networks, params, frozen = world.world(whole) if gathering else world.world()
    empty = frozen.pop("empty")
    frozen = jax.tree.map(lambda leaf: jax.device_put(leaf, rule("", leaf.shape)), frozen)
    frozen["empty"] = jax.device_put(empty, whole)
    state = jax.device_put(init_train_state(params, tx), whole)
    batch = parallel.to_global(world.make_batch(NATIVE, PARALLEL), mesh)
    return networks, state, frozen, batch


@functools.cache
def one_step(name, data, fsdp, accumulation_steps=1):
    """Metrics, gradient and HLO text of one step of a world on a mesh.

    With plain descent at rate 1 from params, the gradient is what the step took away.
    """
    world = WORLDS[name]
    tx = optax.sgd(1.0)
    mesh = parallel.make_mesh(data, fsdp, jax.devices()[: data * fsdp])
    own = ("unet",) if name == "gathering" else ()
    networks, state, frozen, batch = place(world, mesh, tx, bool(own))
    if own:
        frozen["unet"] = _kernels_alone_are_split(frozen["unet"], mesh)
    before = _flat(state.params)
    objective = LossAndGradient(
        networks,
        fakes.schedule(),
        SETTINGS,
        accumulation_steps=accumulation_steps,
        languages=fakes.LANGUAGES,
    )
    train_step = make_train_step(objective, tx)
    step = jit_train_step(train_step, mesh, gathering=own)
    at_once = tiny.IMAGE**2 if name == "slicing" else latents._PIXELS_AT_ONCE
    with mock.patch.object(latents, "_PIXELS_AT_ONCE", at_once):
        lowered = step.lower(state, frozen, batch, KEY)
    compiled = lowered.compile(fakes.QUICK)
    state, metrics = compiled(state, frozen, batch, KEY)
    after = _flat(state.params)
    gradient = {key: before[key] - after[key] for key in before}
    return jax.device_get(metrics), gradient, compiled.as_text()


def _kernels_alone_are_split(weights, mesh):
    """Scales and biases are whole, as those of the real networks are, which are small."""
    whole = parallel.replicated(mesh)

    def put(leaf):
        return leaf if leaf.ndim > 1 else jax.device_put(leaf, whole)

    return jax.tree.map(put, weights)


def _flat(params):
    """Copies of the parameters, by their keys."""
    return {names.key_of(path): np.array(leaf[...]) for path, leaf in nnx.to_flat_state(params)}
