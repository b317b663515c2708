"""Kernels that are split over devices are whole only while their layer runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pea_jax.models.gather import gather_at_use
from pea_jax.runtime import parallel
from pea_jax.tasks.preflight import hlo, topology
from tests.libtpu import needs_libtpu
from tests.models.random_module import random_module


class Layers(nnx.Module):
    def __init__(self):
        self.conv = nnx.Conv(4, 8, (3, 3), rngs=nnx.Rngs(0))
        self.linears = nnx.List([nnx.Linear(8, 8, rngs=nnx.Rngs(0)) for _ in range(2)])

    def __call__(self, x):
        x = jnp.tanh(self.conv(x))
        for linear in self.linears:
            x = jnp.tanh(linear(x))
        return x


class Wide(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List(
            [
                nnx.Linear(512, 512, use_bias=False, param_dtype=jnp.bfloat16, rngs=rngs)
                for _ in range(3)
            ]
        )

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return x


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh(2, 4)


def _split(module, mesh):
    rule = parallel.parameter_sharding(mesh, min_size=1)
    return jax.tree.map(lambda x: jax.device_put(x, rule("", x.shape)), module)


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.standard_normal((8, 4, 4, 4)), jnp.float32)


def test_values_and_gradients_are_the_same(mesh, x):
    plain = random_module(Layers)
    gathering = _split(random_module(Layers), mesh)
    gather_at_use(gathering, parallel.replicated(mesh))

    def loss(module, x):
        return jnp.sum(module(x) ** 2)

    for of in (lambda m: loss(m, x), lambda m: jax.grad(loss, argnums=1)(m, x)):
        np.testing.assert_allclose(of(gathering), of(plain), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gathers", [True, False])
def test_no_whole_kernel_is_kept_for_the_backward_pass(mesh, x, gathers):
    """If they were gathered once (the second case), all of them would be whole at the memory peak,
    and splitting them would save nothing."""
    module = _split(random_module(Layers), mesh)
    if gathers:
        gather_at_use(module, parallel.replicated(mesh))
    graph, weights = nnx.split(module)

    def predict(x):
        whole = parallel.replicated(mesh)
        placed = weights if gathers else jax.lax.with_sharding_constraint(weights, whole)
        return nnx.merge(graph, placed)(x)

    _, backward = jax.vjp(predict, x)
    kernels = {weight.shape for weight in jax.tree.leaves(weights) if weight.ndim > 1}
    kept = [leaf for leaf in jax.tree.leaves(backward) if getattr(leaf, "shape", 0) in kernels]
    assert len(kept) == 3
    assert any(leaf.sharding.is_fully_replicated for leaf in kept) != gathers


@needs_libtpu
@pytest.mark.parametrize("effort", [0.0, -1.0])
def test_the_tpu_compiler_gathers_for_each_pass(effort):
    """As in a train step: a teacher, and then a student that starts when the teacher has ended. If
    the gathers of both passes were merged, every kernel would be whole between them."""
    mesh = parallel.make_mesh(2, 2, topology.devices("v5e:2x2"))
    rule = parallel.parameter_sharding(mesh, min_size=1)
    module = nnx.eval_shape(lambda: Wide(rngs=nnx.Rngs(0)))
    gather_at_use(module, parallel.replicated(mesh))
    graph, weights = nnx.split(module)

    def placed(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rule("", leaf.shape))

    def step(weights, x):
        taught = nnx.merge(graph, weights)(x)
        weights, taught = jax.lax.optimization_barrier((weights, taught))
        student = nnx.merge(graph, weights)
        return jax.grad(lambda x: jnp.sum((student(x) - taught) ** 2))(x)

    x = jax.ShapeDtypeStruct((512, 512), jnp.bfloat16, sharding=parallel.batch_sharding(mesh))
    lowered = jax.jit(step).lower(jax.tree.map(placed, weights), x)
    text = lowered.compile({"exec_time_optimization_effort": effort}).as_text()
    counts, _ = hlo.count(text)
    passes, layers, sent = 3, 3, 512 * 512 * 2 / 2
    assert counts.collectives["all-gather"] == (passes * layers, passes * layers * sent)


def test_equal_gathering_modules_share_a_program(mesh):
    """jit compares the static parts of modules by value."""
    graphs = []
    for _ in range(2):
        module = random_module(Layers)
        gather_at_use(module, parallel.replicated(mesh))
        graphs.append(nnx.graphdef(module))
    assert graphs[0] == graphs[1]
    assert hash(graphs[0]) == hash(graphs[1])
