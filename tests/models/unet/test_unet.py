"""The UNet by itself: sizes, config, features. Its numbers are checked in tests/parity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pea_jax.models.conditioning import Conditioning
from pea_jax.models.rngs import OneKey
from pea_jax.models.unet.unet import UNet, UNetConfig
from pea_jax.weights.builtin_configs import read_config
from tests.models.random_module import random_module

UNET_15 = read_config("sd15/unet/config.json")
UNET_21 = read_config("sd21/unet/config.json")
UNET_XL = read_config("sdxl/unet/config.json")
UNET_TURBO = read_config("sdxl-turbo/unet/config.json")
UNET_INPAINTING = read_config("sdxl-inpainting/unet/config.json")
UNET_SSD1B = read_config("ssd1b/unet/config.json")

TINY = {
    **UNET_15,
    "attention_head_dim": [2, 4],
    "block_out_channels": [8, 16],
    "cross_attention_dim": 12,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}


def build(config: dict, **options) -> UNet:
    return UNet(UNetConfig.from_dict(config), rngs=OneKey(), **options)


TINY_XL = {
    **UNET_XL,
    "addition_time_embed_dim": 4,
    "attention_head_dim": [1, 2, 4],
    "block_out_channels": [8, 8, 16],
    "cross_attention_dim": 12,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "projection_class_embeddings_input_dim": 10 + 6 * 4,
    "transformer_layers_per_block": [1, 1, 2],
}

PUBLISHED = {
    "1.5": UNET_15,
    "2.1": UNET_21,
    "SDXL": UNET_XL,
    "SDXL-Turbo": UNET_TURBO,
    "SDXL inpainting": UNET_INPAINTING,
    "SSD-1B": UNET_SSD1B,
}


@functools.cache
def full_size(name: str) -> UNet:
    return nnx.eval_shape(lambda: build(PUBLISHED[name]))


def computed(dtype, *arguments):
    model = random_module(lambda: build(TINY, dtype=dtype, param_dtype=jnp.bfloat16))
    graph, state = nnx.split(model)
    return jax.jit(lambda state, *arguments: nnx.merge(graph, state)(*arguments))(state, *arguments)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("1.5", 859_520_964),
        ("2.1", 865_910_724),
        ("SDXL", 2_567_463_684),
        ("SDXL-Turbo", 2_567_463_684),
        ("SDXL inpainting", 2_567_463_684 + 5 * 9 * 320),  # five more channels into conv_in
        ("SSD-1B", 1_331_334_404),
    ],
)
def test_published_parameter_counts(name, parameters):
    """A count that is off means a layer, bias or width that the published model does not have."""
    state = nnx.state(full_size(name))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == parameters


def test_full_size_features():
    """Every block's output after its down- or upsampler, in order, at the published widths."""
    conditioning = Conditioning(jax.ShapeDtypeStruct((2, 77, 768), jnp.float32))
    prediction, features = nnx.eval_shape(
        lambda model, *inputs: model(*inputs),
        full_size("1.5"),
        jax.ShapeDtypeStruct((2, 64, 64, 4), jnp.float32),
        jax.ShapeDtypeStruct((2,), jnp.int32),
        conditioning,
    )
    assert prediction.shape == (2, 64, 64, 4)
    assert {name: feature.shape[1:] for name, feature in features.items()} == {
        "down_0": (32, 32, 320),
        "down_1": (16, 16, 640),
        "down_2": (8, 8, 1280),
        "down_3": (8, 8, 1280),
        "mid": (8, 8, 1280),
        "up_0": (16, 16, 1280),
        "up_1": (32, 32, 1280),
        "up_2": (64, 64, 640),
        "up_3": (64, 64, 320),
    }
    assert all(feature.shape[0] == 2 for feature in features.values())


@pytest.mark.parametrize("name", ["SDXL", "SSD-1B"])
def test_sdxl_has_seven_features(name):
    """3 + 1 + 3 blocks, also for SSD-1B, whose middle has no attention."""
    shape = jax.ShapeDtypeStruct
    _, features = nnx.eval_shape(
        lambda model, *inputs: model(*inputs),
        full_size(name),
        shape((1, 128, 128, 4), jnp.float32),
        shape((1,), jnp.int32),
        Conditioning(shape((1, 77, 2048), jnp.float32), shape((1, 1280), jnp.float32)),
        shape((1, 6), jnp.float32),
    )
    assert {block: feature.shape[1:] for block, feature in features.items()} == {
        "down_0": (64, 64, 320),
        "down_1": (32, 32, 640),
        "down_2": (32, 32, 1280),
        "mid": (32, 32, 1280),
        "up_0": (64, 64, 1280),
        "up_1": (128, 128, 640),
        "up_2": (128, 128, 320),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "mish"}, "act_fn: expected 'silu' or 'swish', got 'mish'"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type"),
        ({"attention_head_dim": [2, 3]}, r"attention_head_dim .* expected divisors"),
        ({"attention_head_dim": [2, 2, 2]}, "expected 2 entries"),
        ({"attention_type": "gated"}, "attention_type"),
        ({"block_out_channels": 8}, "block_out_channels: expected a list"),
        ({"block_out_channels": [6, 16]}, "norm_num_groups"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "AttnDownBlock2D"),
        ({"downsample_padding": 2}, "downsample_padding: expected 0 or 1, got 2"),
        ({"dual_cross_attention": True}, "dual_cross_attention"),
        ({"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type"),
        ({"in_channels": "4"}, "in_channels: expected a positive integer, got '4'"),
        ({"invented": 1}, "invented: not a known field, got 1"),
        ({"layers_per_block": True}, "layers_per_block"),
        ({"mid_block_type": None}, "mid_block_type"),
        ({"norm_num_groups": None}, "norm_num_groups: expected a positive integer, got None"),
        ({"num_class_embeds": 1000}, "num_class_embeds"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ({"time_cond_proj_dim": 256}, "time_cond_proj_dim"),
        ({"transformer_layers_per_block": [[1], 1]}, "transformer_layers_per_block"),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types: expected 2 entries"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_unsupported_values_name_themselves(change, message):
    """If one were ignored, the network would differ from the checkpoint's."""
    with pytest.raises(ValueError, match=message):
        UNetConfig.from_dict({**TINY, **change})


def test_a_config_made_by_hand_is_checked_too():
    """Otherwise an unknown block type would count as one without attention."""
    with pytest.raises(ValueError, match=r"down_block_types: .*'AttnDownBlock2D'"):
        UNetConfig(down_block_types=("AttnDownBlock2D",) * 4)


def test_all_unsupported_values_are_in_one_error():
    with pytest.raises(ValueError, match=r"act_fn.*time_embedding_type"):
        UNetConfig.from_dict({**TINY, "act_fn": "mish", "time_embedding_type": "fourier"})


def test_config_from_dict():
    """One number stands for all levels; the heads come from attention_head_dim."""
    config = UNetConfig.from_dict(UNET_21)
    assert config.attention_heads == (5, 10, 20, 20)
    assert config.layers_per_block == (2, 2, 2, 2)
    assert config.use_linear_projection
    assert UNetConfig.from_dict(UNET_15).attention_heads == (8, 8, 8, 8)
    assert UNetConfig.from_dict({}) == UNetConfig()


def test_wrong_inputs_name_themselves():
    """Otherwise each would fail deep inside, with the shape of some matrix."""
    model = nnx.eval_shape(lambda: build(TINY))
    latents, timesteps = jnp.zeros((2, 8, 8, 4)), jnp.zeros(2)
    conditioning = Conditioning(jnp.zeros((2, 5, 12)))
    with pytest.raises(ValueError, match=r"latents: expected 4 channels last, got \(2, 8, 8, 3\)"):
        model(latents[..., :3], timesteps, conditioning)
    with pytest.raises(ValueError, match=r"tokens: expected width 12, got \(2, 5, 11\)"):
        model(latents, timesteps, Conditioning(conditioning.tokens[..., :11]))
    with pytest.raises(ValueError, match="added: expected None"):
        model(latents, timesteps, conditioning, jnp.zeros((2, 6)))


def test_bfloat16_computes_close_to_float32():
    """Each output lies within bfloat16's rounding of float32's: norms and softmax keep digits."""
    keys = jax.random.split(jax.random.key(1), 2)
    latents = jax.random.normal(keys[0], (2, 4, 4, 4))
    arguments = latents, jnp.array([3, 700]), Conditioning(jax.random.normal(keys[1], (2, 5, 12)))
    want, got = (computed(dtype, *arguments) for dtype in (jnp.float32, jnp.bfloat16))
    for value, other in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        assert other.dtype == jnp.bfloat16
        error = np.linalg.norm(other.astype(jnp.float32) - value) / np.linalg.norm(value)
        assert error < 0.02


def xl_inputs(batch: int = 2, side: int = 8):
    keys = jax.random.split(jax.random.key(2), 3)
    conditioning = Conditioning(
        jax.random.normal(keys[0], (batch, 5, 12)), jax.random.normal(keys[1], (batch, 10))
    )
    latents = jax.random.normal(keys[2], (batch, side, side, 4))
    return latents, jnp.array([3, 700][:batch]), conditioning, jnp.full((batch, 6), 512.0)


def test_sdxl_requires_pooled_vector_and_time_ids():
    """Without one the network would differ; other families would ignore them."""
    model = nnx.eval_shape(lambda: build(TINY_XL))
    latents, timesteps, conditioning, added = xl_inputs()
    with pytest.raises(ValueError, match=r"pooled: expected width 10, got None.*added: expected"):
        model(latents, timesteps, Conditioning(conditioning.tokens))
    with pytest.raises(ValueError, match=r"added: expected width 6, got \(2, 5\)"):
        model(latents, timesteps, conditioning, added[:, :5])
    with pytest.raises(ValueError, match="pooled: expected None"):
        nnx.eval_shape(lambda: build(TINY))(latents, timesteps, conditioning)


def loss_of(remat: str):
    """(conditioning, state, latents, timesteps, added) -> a loss, the UNet's state, split."""
    graph, state = nnx.split(random_module(lambda: build(TINY_XL, remat=remat)))

    def loss(conditioning, state, latents, timesteps, added):
        prediction, features = nnx.merge(graph, state)(latents, timesteps, conditioning, added)
        return sum(jnp.mean(jnp.square(value)) for value in (prediction, *features.values()))

    return loss, state


@functools.cache
def gradient(remat: str):
    loss, state = loss_of(remat)
    latents, timesteps, conditioning, added = xl_inputs()
    # Without optimization, code compiles in a third of the time.
    run = jax.jit(jax.grad(loss), compiler_options={"xla_backend_optimization_level": 0})
    return run(conditioning, state, latents, timesteps, added)


@pytest.mark.parametrize("remat", ["blocks", "full"])
def test_remat_changes_no_value(remat):
    for got, want in zip(
        jax.tree.leaves(gradient(remat)), jax.tree.leaves(gradient("none")), strict=True
    ):
        scale = float(jnp.abs(want).max())
        assert scale > 1e-6
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * scale)


def kept(remat: str) -> int:
    """Bytes that the forward pass stores for the gradient, weights included."""
    loss, state = loss_of(remat)
    latents, timesteps, conditioning, added = xl_inputs(side=64)

    def backward(conditioning, state):
        return jax.vjp(lambda c: loss(c, state, latents, timesteps, added), conditioning)[1]

    leaves = jax.tree.leaves(jax.eval_shape(backward, conditioning, state))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def test_remat_saves_memory():
    """The more is recomputed, the less is stored."""
    none, blocks, full = (kept(remat) for remat in ("none", "blocks", "full"))
    assert full < blocks < 0.5 * none


def test_an_unknown_remat_names_itself():
    with pytest.raises(ValueError, match=r"expected .*'none', 'blocks', 'full'.*got 'all'"):
        nnx.eval_shape(lambda: build(TINY_XL, remat="all"))
