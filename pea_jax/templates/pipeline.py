"""Stable Diffusion that takes prompts in its language encoder's languages, in PyTorch diffusers.

PEA-Diffusion, https://arxiv.org/abs/2311.17086: a language encoder and a small adapter stand in for
the English text encoder; UNet, VAE and scheduler are the base model's own, unchanged.

    pipe = DiffusionPipeline.from_pretrained(
        folder, custom_pipeline="pipeline", trust_remote_code=True
    )
    image = pipe("...").images[0]

LoRA, schedulers, offloading and the other arguments work as in `StableDiffusionPipeline`. Other
pipelines of the same base (ControlNet, inpainting, image to image) take the prompt embeddings that
`encode_prompt` gives.
"""

from pathlib import Path
from typing import ClassVar

import torch
from diffusers import ModelMixin, StableDiffusionPipeline
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


class PEAPipeline(StableDiffusionPipeline):
    """`StableDiffusionPipeline` whose prompts go through a language encoder and an adapter.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler: the base model. Its English text encoder
            isn't used here; `StableDiffusionPipeline.from_pipe(pipe)` is the English model.
        language_encoder: the frozen encoder of the prompts' languages.
        language_tokenizer: its tokenizer; prompts are padded to its `model_max_length`.
        adapter: maps the encoder's last hidden state to the UNet's conditioning.
        language_encoder_2, language_tokenizer_2: a second encoder, whose last hidden state lies
            beside that of the first on the feature axis, if the adapter was trained on two.
        safety_checker, feature_extractor, image_encoder, requires_safety_checker: as in
            `StableDiffusionPipeline`.
    """

    model_cpu_offload_seq = (
        "language_encoder->language_encoder_2->adapter->text_encoder->image_encoder->unet->vae"
    )
    #: This file, which `save_pretrained` writes beside the model: whatever else is loaded later.
    code: ClassVar[str] = Path(__file__).read_text("utf-8")
    _optional_components: ClassVar[list[str]] = [
        *StableDiffusionPipeline._optional_components,
        "language_encoder_2",
        "language_tokenizer_2",
    ]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        language_encoder: PreTrainedModel,
        language_tokenizer: PreTrainedTokenizerBase,
        adapter: ModelMixin,
        language_encoder_2: PreTrainedModel = None,
        language_tokenizer_2: PreTrainedTokenizerBase = None,
        safety_checker: ModelMixin = None,
        feature_extractor: CLIPImageProcessor = None,
        image_encoder: CLIPVisionModelWithProjection = None,
        requires_safety_checker: bool = False,
    ):
        # The parent rewrites a scheduler's steps_offset and clip_sample; without one in its hands
        # the scheduler stays as it was configured, and images as they were where it was trained.
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=None,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            requires_safety_checker=requires_safety_checker,
        )
        self.register_modules(
            scheduler=scheduler,
            language_encoder=language_encoder,
            language_tokenizer=language_tokenizer,
            adapter=adapter,
            language_encoder_2=language_encoder_2,
            language_tokenizer_2=language_tokenizer_2,
        )

    def encode_prompt(
        self,
        prompt,
        device,
        num_images_per_prompt,
        do_classifier_free_guidance,
        negative_prompt=None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As in `StableDiffusionPipeline`, through the language encoder and the adapter.

        The negative prompt, "" unless given, takes the same way.
        """
        if clip_skip is not None:
            raise ValueError("clip_skip is of the English text encoder, which isn't used here")
        if prompt_embeds is None:
            prompts = [prompt] if isinstance(prompt, str) else list(prompt)
            prompt_embeds, _ = self.adapter.encode(prompts, self, device)
        if do_classifier_free_guidance and negative_prompt_embeds is None:
            negative_prompt_embeds, _ = self.adapter.encode_negative(
                negative_prompt, len(prompt_embeds), self, device
            )
        # With embeddings given, what is left to the parent is the number of images per prompt.
        encoded = super().encode_prompt(
            None,
            device,
            num_images_per_prompt,
            do_classifier_free_guidance,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            lora_scale=lora_scale,
        )
        # Where no dtype is asked for, transformers keeps that of the files and diffusers doesn't.
        return tuple(None if one is None else one.to(self.unet.dtype) for one in encoded)

    def save_config(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Writes model_index.json and, beside it, the code that it names: the folder is whole."""
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        self.adapter.save_code(self, save_directory)
