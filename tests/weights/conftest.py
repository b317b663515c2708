"""Small models on disk, laid out as diffusers and transformers lay them out."""

import json
import string
from pathlib import Path

import pytest
import transformers
from flax import nnx

from pea_jax.models.text.bert import Bert, BertConfig
from pea_jax.models.text.clip import CLIPText, CLIPTextConfig
from pea_jax.models.unet.unet import UNet, UNetConfig
from pea_jax.models.vae import VAE, VAEConfig
from pea_jax.weights.save import save_module
from tests.models.random_module import random_module

UNET = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 16,
    "norm_num_groups": 4,
    "sample_size": 8,
}
VAE_SIZES = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 4,
}
CLIP = {
    "model_type": "clip_text_model",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "eos_token_id": 1,
}
XLMR = {
    "model_type": "xlm-roberta",
    "vocab_size": 64,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 20,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
}
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.42.1",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
#: SDXL in small: three levels and two text encoders; the UNet takes the projected vector of the
#: second one besides the time ids.
UNET_XL = {
    **UNET,
    "block_out_channels": [8, 8, 16],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [1, 2, 4],
    "transformer_layers_per_block": [1, 1, 2],
    "use_linear_projection": True,
    "cross_attention_dim": 24,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 10 + 6 * 4,
}
CLIP_2 = {**CLIP, "hidden_size": 8, "hidden_act": "gelu", "projection_dim": 10}
MODEL_INDEX_XL = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.42.1",
    "feature_extractor": [None, None],
    "force_zeros_for_empty_prompt": True,
    "image_encoder": [None, None],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

BUILDS = {
    "unet": (lambda: UNet(UNetConfig.from_dict(UNET), rngs=nnx.Rngs(0)), UNET),
    "vae": (lambda: VAE(VAEConfig.from_dict(VAE_SIZES), rngs=nnx.Rngs(0)), VAE_SIZES),
    "text_encoder": (lambda: CLIPText(CLIPTextConfig.from_dict(CLIP), rngs=nnx.Rngs(0)), CLIP),
    "language": (lambda: Bert(BertConfig.from_dict(XLMR), rngs=nnx.Rngs(0)), XLMR),
}
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}


def write_json(file: Path, values: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values))


def write_part(folder: Path, part: str) -> None:
    build, config = BUILDS[part]
    write_json(folder / "config.json", config)
    save_module(random_module(build), folder / f"{STEMS.get(part, 'model')}.safetensors")


def english_tokenizer(model_max_length: int = 12, **options) -> transformers.CLIPTokenizer:
    """One token a letter."""
    letters = string.ascii_lowercase
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocab = {word: index for index, word in enumerate(words)}
    return transformers.CLIPTokenizer(
        vocab=vocab, merges=[], model_max_length=model_max_length, **options
    )


def native_tokenizer(model_max_length: int = 16) -> transformers.XLMRobertaTokenizer:
    """One token a character, and "▁" before each word."""
    specials = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [(piece, -float(rank)) for rank, piece in enumerate("▁一个红色的大圆形abc")]
    return transformers.XLMRobertaTokenizer(
        vocab=specials + pieces + [("<mask>", 0.0)], model_max_length=model_max_length
    )


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory) -> Path:
    """A Stable Diffusion in diffusers' format. Not to be written to."""
    folder = tmp_path_factory.mktemp("models") / "sd"
    for part in ("unet", "vae", "text_encoder"):
        write_part(folder / part, part)
    write_json(folder / "model_index.json", MODEL_INDEX)
    write_json(
        folder / "scheduler" / "scheduler_config.json",
        {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "steps_offset": 1},
    )
    english_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def xlmr_folder(tmp_path_factory) -> Path:
    """An XLM-R in transformers' format. Not to be written to."""
    folder = tmp_path_factory.mktemp("models") / "xlm-roberta"
    write_part(folder, "language")
    native_tokenizer().save_pretrained(folder)
    return folder
