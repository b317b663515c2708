"""The autoencoder against diffusers' AutoencoderKL: block by block, and whole, both ways."""

import jax
import numpy as np
import pytest
from flax import nnx

from pea_jax.models.vae import VAE, VAEConfig
from pea_jax.weights.load import load_module
from tests.parity.reference import (
    from_torch,
    jitted,
    randomise,
    read_config,
    relative_error,
    save,
    to_torch,
)

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from safetensors.numpy import load_file, save_file

TOLERANCE = 1e-5

SIZES = {
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}
#: Where the modules that are compared one by one lie, in both models.
BLOCKS = {
    "encoder": ["down_blocks.0", "down_blocks.1", "down_blocks.2", "mid_block"],
    "decoder": ["mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2"],
}


def load(config: dict, file) -> VAE:
    config = VAEConfig.from_dict(config)
    return load_module(lambda: VAE(config, rngs=nnx.Rngs(0)), file)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small random AutoencoderKL, and the file of its weights.

    Its convolutions are weak: a norm's eps, 1e-6, shows where the variance is small.
    """
    model = randomise(diffusers.AutoencoderKL(**SIZES))
    for name, parameter in model.named_parameters():
        if "conv" in name and "norm" not in name:
            parameter.mul_(0.02)
    return model, save(model, tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def ours(saved):
    return load(read_config(saved[1]), saved[1])


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def latents():
    return np.random.default_rng(1).normal(size=(2, 4, 6, 4)).astype(np.float32)


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_blocks(saved, ours, images, latents, half):
    """Each block, fed what diffusers feeds it: an error shows where it is made."""
    model, _ = saved
    seen = {}
    hooks = [
        model.get_submodule(f"{half}.{name}").register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: (inputs[0], output)})
        )
        for name in BLOCKS[half]
    ]
    if half == "encoder":
        model.encode(to_torch(images))
    else:
        model.decode(to_torch(latents))
    for hook in hooks:
        hook.remove()

    graph, state = nnx.split(getattr(ours, half))

    @jax.jit
    def run(state, inputs):
        module = nnx.merge(graph, state)
        return {name: _submodule(module, name)(value) for name, value in inputs.items()}

    got = run(state, {name: from_torch(inputs) for name, (inputs, _) in seen.items()})
    for name in BLOCKS[half]:
        error = relative_error(got[name], from_torch(seen[name][1]))
        assert error < TOLERANCE, f"{half}.{name}: {error:.1e}"


def _submodule(module, path: str):
    for part in path.split("."):
        module = module[int(part)] if part.isdigit() else getattr(module, part)
    return module


@pytest.fixture(scope="module")
def encode(ours):
    return jitted(ours, "encode")


def test_encode(saved, encode, images):
    """Both moments, of an image that is not square."""
    posterior = saved[0].encode(to_torch(images)).latent_dist
    mean, logvar = encode(images)
    assert relative_error(mean, from_torch(posterior.mean)) < TOLERANCE
    assert relative_error(logvar, from_torch(posterior.logvar)) < TOLERANCE


def test_decode(saved, ours, latents):
    want = saved[0].decode(to_torch(latents)).sample
    assert relative_error(jitted(ours, "decode")(latents), from_torch(want)) < TOLERANCE


@pytest.mark.parametrize("convolved", [False, True], ids=["linear", "1x1 convolution"])
def test_file_of_before_diffusers_0_15(saved, ours, tmp_path, convolved):
    """The attention under its old keys (as published for SD 1.x) gives the very same parameters."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for key, value in load_file(saved[1]).items():
        for new, name in old.items():
            if f".attentions.0.{new}." in key:
                key = key.replace(new, name)
                value = value[..., None, None] if convolved and value.ndim == 2 else value
        tensors[key] = value
    save_file(tensors, tmp_path / "old.safetensors")
    assert sum("proj_attn" in key for key in tensors) == 4
    loaded = load(read_config(saved[1]), tmp_path / "old.safetensors")
    jax.tree.map(np.testing.assert_array_equal, nnx.state(loaded), nnx.state(ours))


@pytest.mark.slow
def test_full_size(tmp_path):
    """Stable Diffusion's own sizes, 83,653,863 parameters."""
    sizes = {**SIZES, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
    sizes |= {"norm_num_groups": 32}
    sizes |= {key: [SIZES[key][0]] * 4 for key in ("down_block_types", "up_block_types")}
    model = randomise(diffusers.AutoencoderKL(**sizes))
    file = save(model, tmp_path)
    ours = load(read_config(file), file)
    images = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)
    posterior = model.encode(to_torch(images)).latent_dist
    mean, logvar = jitted(ours, "encode")(images)
    assert relative_error(mean, from_torch(posterior.mean)) < TOLERANCE
    assert relative_error(logvar, from_torch(posterior.logvar)) < TOLERANCE
    want = model.decode(posterior.mean).sample
    got = jitted(ours, "decode")(from_torch(posterior.mean))
    assert relative_error(got, from_torch(want)) < TOLERANCE
