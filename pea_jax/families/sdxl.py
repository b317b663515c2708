"""SDXL (arXiv 2307.01952, section 2.1) and the models of its architecture.

The UNet is conditioned on two English text towers, on a pooled text vector, and on the time ids:
sizes and crop of the training image.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax.numpy as jnp

from pea_jax.families.family import CLIP_TEXT, KL_VAE, UNET, DiffusersPipeline, Family
from pea_jax.models.conditioning import Conditioning
from pea_jax.models.text.clip import CLIPText
from pea_jax.models.text.towers import TextOutput


def _penultimate_hidden_states(outputs: Sequence[TextOutput]) -> Conditioning:
    """hidden_states[-2] of both towers on the feature axis; the second one's projected vector."""
    tokens = jnp.concatenate([output.hidden_states[-2] for output in outputs], axis=-1)
    return Conditioning(tokens, pooled=outputs[-1].pooled)


SDXL = Family(
    name="Stable Diffusion XL",
    unet=UNET,
    vae=KL_VAE,
    text_encoders={
        "text_encoder": CLIP_TEXT,
        "text_encoder_2": dataclasses.replace(
            CLIP_TEXT,
            classes=("CLIPTextModelWithProjection",),
            build=functools.partial(CLIPText, projected=True),
            ignore=(),
            tokenizer="tokenizer_2",
        ),
    },
    pooled="text_encoder_2",
    condition=_penultimate_hidden_states,
    time_ids=True,
    # The published VAE overflows in 16 bits; sdxl-vae-fp16-fix says force_upcast: false.
    upcasts_vae=True,
    diffusers=DiffusersPipeline(
        name="StableDiffusionXLPipeline",
        encoded=(
            "prompt_embeds",
            "negative_prompt_embeds",
            "pooled_prompt_embeds",
            "negative_pooled_prompt_embeds",
        ),
        index={"feature_extractor": [None, None], "image_encoder": [None, None]},
    ),
)
