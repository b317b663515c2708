"""The autoencoder by itself: exact size, its config, its refusals. Numbers are in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pea_jax.models.vae import VAE, VAEConfig
from pea_jax.weights.builtin_configs import read_config
from tests.models.random_module import random_module

VAE_15 = read_config("sd15/vae/config.json")
VAE_XL = read_config("sdxl/vae/config.json")

TINY = {
    **VAE_15,
    "block_out_channels": [4, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}


def build(config: dict, **dtypes) -> VAE:
    return VAE(VAEConfig.from_dict(config), rngs=nnx.Rngs(0), **dtypes)


@pytest.mark.parametrize("config", [VAE_15, VAE_XL], ids=["sd-1.5", "sdxl"])
def test_published_parameter_count(config):
    """A different layer, bias or width would show here."""
    state = nnx.state(nnx.eval_shape(lambda: build(config)))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 83_653_863


def test_full_size_shapes():
    """512 pixels are 64 latents, and come back as 512 pixels."""
    model = nnx.eval_shape(lambda: build(VAE_15))
    images = jax.ShapeDtypeStruct((2, 512, 256, 3), jnp.float32)
    mean, logvar = nnx.eval_shape(lambda model, x: model.encode(x), model, images)
    assert mean.shape == logvar.shape == (2, 64, 32, 4)
    assert nnx.eval_shape(lambda model, x: model.decode(x), model, mean).shape == images.shape
    assert model.config.downsampling_factor == 8


def test_scaling_factor():
    """SD 1.5's config leaves it out, SDXL's has another; images of the wrong scale are noise."""
    assert VAEConfig.from_dict(VAE_15).scaling_factor == 0.18215
    assert VAEConfig.from_dict(VAE_XL).scaling_factor == 0.13025


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"_class_name": "AutoencoderTiny"}, "_class_name: expected 'AutoencoderKL'"),
        ({"act_fn": "mish"}, "act_fn: expected 'silu', got 'mish'"),
        ({"block_out_channels": 8}, "block_out_channels: expected a list, got 8"),
        ({"block_out_channels": [4, 7]}, r"block_out_channels: expected multiples .*\[4, 7\]"),
        ({"down_block_types": ["DownEncoderBlock2D"]}, "down_block_types: expected 2 of"),
        ({"up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]}, "AttnUpDecoderBlock2D"),
        ({"latent_channels": 0}, "latent_channels: expected a positive integer, got 0"),
        ({"latents_mean": [0.0] * 4}, "latents_mean"),
        ({"latents_std": [1.0] * 4}, "latents_std"),
        ({"layers_per_block": "1"}, "layers_per_block: expected a positive integer, got '1'"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention: expected True, got False"),
        ({"shift_factor": 0.1}, "shift_factor: expected None, got 0.1"),
        ({"use_post_quant_conv": False}, "use_post_quant_conv"),
        ({"use_quant_conv": False}, "use_quant_conv"),
        ({"invented": 1}, "invented: not a known field, got 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_unsupported_values_name_themselves(change, named):
    """If one were ignored, the autoencoder would differ from the checkpoint's."""
    with pytest.raises(ValueError, match=named):
        VAEConfig.from_dict({**TINY, **change})


def test_all_unsupported_values_are_in_one_error():
    with pytest.raises(ValueError, match=r"act_fn.*shift_factor.*up_block_types.*invented"):
        VAEConfig.from_dict(
            {**TINY, "act_fn": "relu", "shift_factor": 1, "up_block_types": [], "invented": 0}
        )


def test_size_that_does_not_divide_is_refused():
    """Otherwise `decode` would return a smaller image."""
    with pytest.raises(ValueError, match="multiples of 2, got 8x7"):
        nnx.eval_shape(lambda: build(TINY).encode(jnp.zeros((1, 8, 7, 3))))


def test_logvar_is_clipped():
    """With a log variance of 1000, samples would be infinite."""
    blocks = {"down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]}
    model = random_module(lambda: build({**TINY, **blocks, "block_out_channels": [4]}))
    moments = jnp.array([0.0] * 4 + [1000.0, -1000.0, 0.0, 0.0])
    model.quant_conv.bias[...] = moments
    model.quant_conv.kernel[...] = jnp.zeros_like(model.quant_conv.kernel[...])
    graph, state = nnx.split(model)
    encode = jax.jit(lambda state, x: nnx.merge(graph, state).encode(x))
    mean, logvar = encode(state, jnp.ones((1, 4, 4, 3)))
    np.testing.assert_array_equal(mean, np.zeros((1, 4, 4, 4)))
    want = np.broadcast_to(np.float32([20.0, -30.0, 0.0, 0.0]), (1, 4, 4, 4))
    np.testing.assert_array_equal(logvar, want)


def test_bfloat16_computes_close_to_float32():
    """Within bfloat16's rounding of float32's: a norm or softmax in bfloat16 would lose more."""
    exact = random_module(lambda: build(TINY))
    rough = random_module(lambda: build(TINY, dtype=jnp.bfloat16))
    latents = jax.random.normal(jax.random.key(1), (1, 8, 8, 4))
    decode = jax.jit(lambda graph, state, x: nnx.merge(graph, state).decode(x), static_argnums=0)
    want, got = (decode(*nnx.split(model), latents) for model in (exact, rough))
    assert got.dtype == jnp.bfloat16
    error = np.linalg.norm(got.astype(jnp.float32) - want) / np.linalg.norm(want)
    assert 0 < error < 0.02
