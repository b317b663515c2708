"""What is trained, what is frozen, and who owns the arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from pea_jax.distill.state import init_train_state, split_networks
from pea_jax.models.adapter import Adapter, AdapterConfig
from tests.distill import fakes


def test_split_parts_trained_from_frozen_and_copies_nothing():
    """A second copy of the frozen networks would not fit beside the first."""
    modules = fakes.modules()
    networks, params, frozen = split_networks(**modules, empty=fakes.empty_prompt())
    assert frozen.keys() == {"unet", "vae", "text_encoder", "language_encoder", "empty"}
    assert frozen["unet"]["enter"]["kernel"][...] is modules["unet"].enter.kernel[...]
    assert params["layernorm"]["scale"][...] is modules["adapter"].layernorm.scale[...]
    merged = nnx.merge(networks.unet, frozen["unet"])
    assert merged.leave.kernel[...] is modules["unet"].leave.kernel[...]


def test_a_new_state_owns_its_arrays():
    """The step donates them: a module that shared one would be left with deleted arrays."""
    _, params, _ = fakes.world()
    state = init_train_state(params, optax.adam(1e-3), ema=True)
    assert state.step == 0
    given, trained, averaged = (
        [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)]
        for tree in (params, state.params, state.ema)
    )
    assert len({*given, *trained, *averaged}) == 3 * len(given)
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    jax.tree.map(np.testing.assert_array_equal, state.ema, params)
    assert init_train_state(params, optax.adam(1e-3)).ema is None


def test_an_adapter_that_is_not_float32_is_refused():
    """In bfloat16 an update of 1e-5 of a weight is lost whole."""
    config = AdapterConfig(4, 4, 4)
    adapter = Adapter(config, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match=r"float32, but.*layernorm.*is bfloat16.*projector"):
        init_train_state(nnx.state(adapter), optax.adam(1e-3))
