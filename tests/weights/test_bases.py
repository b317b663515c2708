"""A base model from a diffusers folder."""

import dataclasses
import functools
import json
import shutil

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pea_jax.models.conditioning import Conditioning
from pea_jax.models.unet.unet import UNet, UNetConfig
from pea_jax.runtime import parallel
from pea_jax.weights.bases import BaseSpec, hash_vae, load_base, load_vae, read_base_config
from pea_jax.weights.load import WeightsError
from pea_jax.weights.save import save_module
from tests import tiny
from tests.models.random_module import random_module
from tests.weights.conftest import BUILDS
from tests.weights.test_load import assert_same, flat
from tests.weights.test_locate import FakeHub


@pytest.fixture
def folder(sd_folder, tmp_path):
    """A copy to break."""
    return shutil.copytree(sd_folder, tmp_path / "sd")


def edit(file, **changes):
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(values))


@pytest.fixture(scope="module")
def base(sd_folder):
    return load_base(BaseSpec(sd_folder))


def test_every_part_is_that_of_the_folder(base, sd_folder):
    assert_same(base.unet, random_module(BUILDS["unet"][0]))
    assert_same(base.vae, random_module(BUILDS["vae"][0]))
    assert_same(base.text_encoder.towers[0], random_module(BUILDS["text_encoder"][0]))
    assert base.config.schedule["steps_offset"] == 1
    assert base.config.folder == sd_folder
    # Padded to what the text encoder was trained at.
    ids, mask = base.tokenizer(["a red circle"])
    assert ids.shape == (1, 12)
    assert jax.eval_shape(base.text_encoder, ids, mask).tokens.shape == (1, 12, 16)


def test_16_bit_weights_and_computation(sd_folder):
    base = load_base(BaseSpec(sd_folder, jnp.bfloat16))
    for module in (base.unet, base.vae, base.text_encoder):
        assert {value.dtype for value in flat(module).values()} == {jnp.dtype(jnp.bfloat16)}
    conditioning = Conditioning(jnp.ones((1, 12, 16), jnp.bfloat16))
    prediction, _ = jax.eval_shape(
        base.unet, jnp.ones((1, 8, 8, 4), jnp.bfloat16), jnp.zeros(1, jnp.int32), conditioning
    )
    assert prediction.dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_vae_alone_is_that_of_the_model(sd_folder, dtype):
    alone = load_vae(BaseSpec(sd_folder, dtype))
    assert_same(alone, load_base(BaseSpec(sd_folder, dtype)).vae)
    assert {value.dtype for value in flat(alone).values()} == {jnp.dtype(dtype)}


def test_a_vae_is_told_from_others_by_its_weights_and_config(folder, sd_folder):
    """And not by the files of other parts, nor by what is no part of a config."""
    hashed = hash_vae(BaseSpec(sd_folder))
    edit(folder / "vae" / "config.json", _diffusers_version="9.9")
    edit(folder / "scheduler" / "scheduler_config.json", steps_offset=0)
    assert hash_vae(BaseSpec(folder)) == hashed
    edit(folder / "vae" / "config.json", scaling_factor=0.5)
    assert hash_vae(BaseSpec(folder)) != hashed
    edit(folder / "vae" / "config.json", scaling_factor=0.18215)
    assert hash_vae(BaseSpec(folder)) == hashed
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    half = file.with_name("diffusion_pytorch_model.fp16.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    half.write_bytes(content)
    # What 16 bits are read from is another file, where there are both.
    assert hash_vae(BaseSpec(folder)) == hashed
    assert hash_vae(BaseSpec(folder, jnp.bfloat16)) not in (hashed, hash_vae(BaseSpec(sd_folder)))


def test_over_a_mesh(sd_folder, monkeypatch):
    """Every array lies on all eight devices, the large ones in parts, and holds the same values."""
    rule = functools.partial(parallel.parameter_sharding, min_size=512)
    monkeypatch.setattr(parallel, "parameter_sharding", rule)
    mesh = parallel.make_mesh(data=2, fsdp=4)
    base = load_base(BaseSpec(sd_folder), mesh=mesh)
    assert_same(base.unet, random_module(BUILDS["unet"][0]))
    kernel = base.unet.mid_block.resnets[0].conv1.kernel.get_value()  # [3, 3, 16, 16]
    assert kernel.addressable_shards[0].data.shape == (3, 3, 16, 4)
    assert base.unet.conv_in.bias.get_value().sharding == parallel.replicated(mesh)


def test_the_config_needs_no_weights(folder):
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    config = read_base_config(folder)
    assert config.unet.cross_attention_dim == 16
    assert config.vae.downsampling_factor == 2
    assert config.text_encoders["text_encoder"].max_position_embeddings == 12
    with pytest.raises(WeightsError, match=r"unet: expected diffusion.*vae: .*text_encoder: "):
        load_base(BaseSpec(folder))


def test_from_the_hub_only_what_is_needed_comes(sd_folder, tmp_path, monkeypatch):
    hub = FakeHub(tmp_path)
    shutil.copytree(sd_folder, hub.repository)
    needed = {
        file.relative_to(sd_folder).as_posix() for file in sd_folder.rglob("*") if file.is_file()
    }
    for extra in (
        "safety_checker/model.safetensors",
        "README.md",
        "unet/model.ckpt",
        "config.json",
    ):
        (hub.repository / extra).parent.mkdir(exist_ok=True)
        (hub.repository / extra).write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    config = read_base_config("some/model@v1")
    assert not [name for name in hub.fetched if name.endswith(".safetensors")]
    assert config.folder == hub.snapshot
    load_base(BaseSpec("some/model@v1"))
    assert hub.fetched == needed
    assert set(hub.requests) == {("some/model", "v1")}


def test_parts_that_do_not_fit_each_other_are_refused(folder):
    edit(folder / "unet" / "config.json", cross_attention_dim=24)
    edit(folder / "vae" / "config.json", latent_channels=8)
    with pytest.raises(WeightsError, match=r"width 24 .*got 16; expected latents of 4 .*got 8"):
        read_base_config(folder)


def test_an_unsupported_value_names_the_folder(folder):
    edit(folder / "unet" / "config.json", act_fn="mish")
    with pytest.raises(WeightsError, match=r"sd: UNet config: act_fn.*mish"):
        read_base_config(folder)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"controlnet": ["diffusers", "ControlNetModel"]},
            "controlnet: a ControlNetModel is not supported",
        ),
        (
            {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]},
            "tokenizer_2: expected a CLIPTokenizer, got None",
        ),
        ({"unet": ["diffusers", "UNet3D"]}, "unet: expected a UNet2DConditionModel, got UNet3D"),
        ({"vae": [None, None]}, "vae: expected a AutoencoderKL, got None"),
    ],
)
def test_parts_of_another_kind_are_refused(folder, changes, problem):
    edit(folder / "model_index.json", **changes)
    with pytest.raises(WeightsError, match=problem):
        read_base_config(folder)


@pytest.mark.parametrize(
    "name", ["model_index.json", "vae/config.json", "scheduler/scheduler_config.json"]
)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=f"{name}: no such file"):
        load_base(BaseSpec(folder))


def test_weights_of_another_shape_are_refused(folder):
    edit(folder / "vae" / "config.json", norm_num_groups=2, block_out_channels=[8, 4])
    with pytest.raises(WeightsError, match=r"misshapen: encoder\.conv_out\.weight"):
        load_base(BaseSpec(folder))


def test_a_base_model_can_be_replaced_in_part(base):
    """Later plug-ins swap the UNet and keep the rest."""
    other = dataclasses.replace(base, unet=random_module(BUILDS["unet"][0], seed=1))
    assert other.vae is base.vae
    assert not np.array_equal(flat(other.unet)["conv_in.bias"], flat(base.unet)["conv_in.bias"])


@pytest.fixture(scope="module")
def xl_folder(tmp_path_factory):
    return tiny.write_base(tmp_path_factory.mktemp("models") / "sdxl", xl=True)


@pytest.fixture
def xl(xl_folder, tmp_path):
    """A copy to break."""
    return shutil.copytree(xl_folder, tmp_path / "sdxl")


def test_sdxl_has_two_text_encoders_whose_ids_lie_side_by_side(xl_folder):
    base = load_base(BaseSpec(xl_folder))
    length = tiny.ENGLISH_TOKENS
    ids, mask = base.tokenizer(["abc", "b"])
    assert ids.shape == mask.shape == (2, 2 * length)
    # Each tokenizer has its own padding.
    assert ids[0, length - 1] != ids[0, -1]
    conditioning = base.text_encoder(jnp.asarray(ids), jnp.asarray(mask))
    assert conditioning.tokens.shape == (2, length, 16 + 8)
    assert conditioning.pooled.shape == (2, 10)
    assert base.config.zero_empty_prompt


def test_sdxl_vae_is_float32_where_its_config_asks_for_it(xl):
    """The published one overflows in 16 bits; sdxl-vae-fp16-fix says that it doesn't."""

    def dtypes(module):
        return {value.dtype for value in flat(module).values()}

    base = load_base(BaseSpec(xl, jnp.bfloat16))
    assert dtypes(base.vae) == {jnp.dtype(jnp.float32)}
    assert read_base_config(xl).dtypes(jnp.bfloat16)["vae"] == jnp.float32
    assert dtypes(base.unet) == dtypes(base.text_encoder) == {jnp.dtype(jnp.bfloat16)}
    edit(xl / "vae" / "config.json", force_upcast=False)
    assert dtypes(load_base(BaseSpec(xl, jnp.bfloat16)).vae) == {jnp.dtype(jnp.bfloat16)}


def test_sdxl_parts_that_do_not_fit_are_all_named(xl):
    edit(xl / "text_encoder" / "config.json", hidden_size=32, max_position_embeddings=12)
    edit(xl / "text_encoder_2" / "config.json", projection_dim=12)
    with pytest.raises(WeightsError, match="width 24") as error:
        read_base_config(xl)
    message = str(error.value)
    assert "got 32 + 8" in message
    assert "a pooled text vector of width 10 (the UNet's added conditioning), got 12" in message
    assert "text encoders of one length, got [12, 64]" in message


def test_an_sdxl_without_its_second_text_encoder_is_refused(xl):
    edit(xl / "model_index.json", text_encoder_2=[None, None], tokenizer_2=[None, None])
    with pytest.raises(WeightsError, match=r"width 24 .*got 16; expected a pooled .*got None"):
        read_base_config(xl)


def test_an_inpainting_unet_loads(xl):
    """Nine channels in: noisy latents, the mask, the masked image's latents."""
    values = json.loads((xl / "unet" / "config.json").read_text()) | {"in_channels": 9}
    (xl / "unet" / "config.json").write_text(json.dumps(values))
    unet = random_module(lambda: UNet(UNetConfig.from_dict(values), rngs=nnx.Rngs(0)))
    save_module(unet, xl / "unet" / "diffusion_pytorch_model.safetensors")
    assert_same(load_base(BaseSpec(xl)).unet, unet)
    edit(xl / "unet" / "config.json", in_channels=8)
    with pytest.raises(WeightsError, match="expected latents of 8 channels"):
        read_base_config(xl)
