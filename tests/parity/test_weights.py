"""Folders that diffusers and transformers write, read by us; and files of ours, read by them."""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import transformers

from pea_jax.weights import names
from pea_jax.weights.bases import BaseSpec, load_base, read_base_config
from pea_jax.weights.language import load_language_encoder
from pea_jax.weights.save import save_module
from tests.parity.reference import randomise
from tests.weights.conftest import CLIP, UNET, VAE_SIZES, XLMR, english_tokenizer, native_tokenizer
from tests.weights.test_load import flat

CLASSES = {
    "unet": diffusers.UNet2DConditionModel,
    "vae": diffusers.AutoencoderKL,
    "text_encoder": transformers.CLIPTextModel,
}


@pytest.fixture(scope="module")
def pipeline():
    text = transformers.CLIPTextConfig(**CLIP, bos_token_id=0, pad_token_id=1)
    sizes = {key: value for key, value in UNET.items() if key != "_class_name"}
    vae_sizes = {key: value for key, value in VAE_SIZES.items() if key != "_class_name"}
    return diffusers.StableDiffusionPipeline(
        unet=randomise(diffusers.UNet2DConditionModel(**sizes)),
        vae=randomise(diffusers.AutoencoderKL(**vae_sizes)),
        text_encoder=randomise(transformers.CLIPTextModel(text)),
        tokenizer=english_tokenizer(),
        scheduler=diffusers.PNDMScheduler(beta_schedule="scaled_linear", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def assert_holds(module, reference: torch.nn.Module, dtype=np.float32):
    """Every parameter is the one of that name, bit for bit, in our layout."""
    got = {names.canonical(key): value for key, value in flat(module).items()}
    want = {
        names.canonical(key): value.numpy().astype(dtype)
        for key, value in reference.state_dict().items()
        if not key.endswith("position_ids")
    }
    assert got.keys() == want.keys()
    for key, value in want.items():
        if value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
        elif value.ndim == 2 and not re.search(r"(token|position|word|type)_embeddings?\.", key):
            value = value.T
        np.testing.assert_array_equal(got[key], value, err_msg=key)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_saved_pipeline_in_shards(pipeline, tmp_path, variant):
    """As diffusers and transformers name shards and their index, of either precision."""
    pipeline.save_pretrained(tmp_path, variant=variant, max_shard_size="20KB")
    for part in ("unet", "vae"):
        assert len(list((tmp_path / part).glob("*-of-*.safetensors"))) > 1
    base = load_base(BaseSpec(tmp_path))
    assert_holds(base.unet, pipeline.unet)
    assert_holds(base.vae, pipeline.vae)
    assert_holds(base.text_encoder.towers[0], pipeline.text_encoder)
    ids, mask = base.tokenizer(["a red circle", ""])
    reference = pipeline.tokenizer(
        ["a red circle", ""], padding="max_length", truncation=True, return_tensors="np"
    )
    np.testing.assert_array_equal(ids, reference["input_ids"])
    np.testing.assert_array_equal(mask, reference["attention_mask"])
    assert base.config.schedule["beta_schedule"] == "scaled_linear"


def test_both_precisions_in_one_folder(pipeline, tmp_path):
    """The fp16 files are read where 16 bits are wanted, the others where 32 are."""
    pipeline.save_pretrained(tmp_path)
    for part, kind in CLASSES.items():
        half = kind.from_pretrained(tmp_path / part).half()
        half.save_pretrained(tmp_path / part, variant="fp16")
    assert_holds(load_base(BaseSpec(tmp_path)).unet, pipeline.unet)
    assert_holds(load_base(BaseSpec(tmp_path, jnp.float16)).unet, pipeline.unet, np.float16)


def test_files_of_ours_load_into_diffusers(pipeline, tmp_path):
    """Strictly: diffusers and transformers report what is missing or unexpected."""
    pipeline.save_pretrained(tmp_path / "theirs")
    base = load_base(BaseSpec(tmp_path / "theirs"))
    modules = {"unet": base.unet, "vae": base.vae, "text_encoder": base.text_encoder.towers[0]}
    for part, module in modules.items():
        source, folder = tmp_path / "theirs" / part, tmp_path / "ours" / part
        folder.mkdir(parents=True)
        (file,) = source.glob("*.safetensors")
        (folder / "config.json").write_text((source / "config.json").read_text())
        save_module(module, folder / file.name)
        loaded, info = CLASSES[part].from_pretrained(folder, output_loading_info=True)
        assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys")), info
        theirs = getattr(pipeline, part).state_dict()
        for key, value in loaded.state_dict().items():
            assert torch.equal(value, theirs[key]), key


def test_every_config_that_diffusers_writes_is_understood(pipeline, tmp_path):
    """save_pretrained writes every field with its default, also those that we refuse otherwise."""
    pipeline.save_pretrained(tmp_path)
    config = read_base_config(tmp_path)
    written = json.loads((tmp_path / "unet" / "config.json").read_text())
    assert len(written) > 40
    assert list(config.unet.block_out_channels) == written["block_out_channels"]


@pytest.mark.parametrize("masked_lm", [False, True])
def test_a_saved_language_encoder(tmp_path: Path, masked_lm):
    """The bare model with its pooler, and the masked language model with prefix and head."""
    config = transformers.XLMRobertaConfig(**{k: v for k, v in XLMR.items() if k != "model_type"})
    kind = transformers.XLMRobertaForMaskedLM if masked_lm else transformers.XLMRobertaModel
    model = randomise(kind(config))
    model.save_pretrained(tmp_path)
    native_tokenizer().save_pretrained(tmp_path)
    encoder = load_language_encoder(tmp_path)
    bare = model.roberta if masked_lm else model
    bare.pooler = None
    assert_holds(encoder.tower, bare)
    texts = ["一个红色的大圆形", ""]
    reference = native_tokenizer()(
        texts, padding="max_length", truncation=True, max_length=16, return_tensors="np"
    )
    np.testing.assert_array_equal(encoder.tokenizer(texts)[0], reference["input_ids"])
