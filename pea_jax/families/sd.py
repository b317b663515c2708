"""Stable Diffusion 1.x and 2.x: one English text tower, nothing but text and time."""

from collections.abc import Sequence

from pea_jax.families.family import CLIP_TEXT, KL_VAE, UNET, DiffusersPipeline, Family
from pea_jax.models.conditioning import Conditioning
from pea_jax.models.text.towers import TextOutput


def _last_hidden_state(outputs: Sequence[TextOutput]) -> Conditioning:
    """The tower's last hidden state, after its final norm."""
    return Conditioning(tokens=outputs[0].tokens)


SD = Family(
    name="Stable Diffusion",
    unet=UNET,
    vae=KL_VAE,
    text_encoders={"text_encoder": CLIP_TEXT},
    pooled=None,
    condition=_last_hidden_state,
    time_ids=False,
    # The published VAEs compute in 16 bits, whatever their config says.
    upcasts_vae=False,
    diffusers=DiffusersPipeline(
        name="StableDiffusionPipeline",
        encoded=("prompt_embeds", "negative_prompt_embeds"),
        index={
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
        },
    ),
)
