"""Stable Diffusion XL that takes prompts in its language encoder's languages, in PyTorch diffusers.

PEA-Diffusion, https://arxiv.org/abs/2311.17086: a language encoder and a small adapter stand in for
both English text encoders; UNet, VAE and scheduler are the base model's own, unchanged.

    pipe = DiffusionPipeline.from_pretrained(
        folder, custom_pipeline="pipeline", trust_remote_code=True
    )
    image = pipe("...").images[0]

LoRA, schedulers, offloading and the other arguments work as in `StableDiffusionXLPipeline`. Other
pipelines of the same base (ControlNet, inpainting, image to image) take the prompt embeddings that
`encode_prompt` gives.
"""

from pathlib import Path
from typing import ClassVar

import torch
from diffusers import ModelMixin, StableDiffusionXLPipeline
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


class PEAPipeline(StableDiffusionXLPipeline):
    """`StableDiffusionXLPipeline` whose prompts go through a language encoder and an adapter.

    Args:
        vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2, unet, scheduler: the base model.
            Its English text encoders aren't used here; `StableDiffusionXLPipeline.from_pipe(pipe)`
            is the English model.
        language_encoder: the frozen encoder of the prompts' languages.
        language_tokenizer: its tokenizer; prompts are padded to its `model_max_length`.
        adapter: maps the encoder's last hidden state to the UNet's tokens and pooled vector.
        language_encoder_2, language_tokenizer_2: a second encoder, whose last hidden state lies
            beside that of the first on the feature axis, if the adapter was trained on two.
        image_encoder, feature_extractor, force_zeros_for_empty_prompt, add_watermarker: as in
            `StableDiffusionXLPipeline`.
    """

    model_cpu_offload_seq = (
        "language_encoder->language_encoder_2->adapter->text_encoder->text_encoder_2"
        "->image_encoder->unet->vae"
    )
    #: This file, which `save_pretrained` writes beside the model: whatever else is loaded later.
    code: ClassVar[str] = Path(__file__).read_text("utf-8")
    _optional_components: ClassVar[list[str]] = [
        *StableDiffusionXLPipeline._optional_components,
        "language_encoder_2",
        "language_tokenizer_2",
    ]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        language_encoder: PreTrainedModel,
        language_tokenizer: PreTrainedTokenizerBase,
        adapter: ModelMixin,
        language_encoder_2: PreTrainedModel = None,
        language_tokenizer_2: PreTrainedTokenizerBase = None,
        image_encoder: CLIPVisionModelWithProjection = None,
        feature_extractor: CLIPImageProcessor = None,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
    ):
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            unet=unet,
            scheduler=scheduler,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
            add_watermarker=add_watermarker,
        )
        self.register_modules(
            language_encoder=language_encoder,
            language_tokenizer=language_tokenizer,
            adapter=adapter,
            language_encoder_2=language_encoder_2,
            language_tokenizer_2=language_tokenizer_2,
        )

    def encode_prompt(
        self,
        prompt,
        prompt_2=None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt=None,
        negative_prompt_2=None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        negative_pooled_prompt_embeds: torch.Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[torch.Tensor | None, ...]:
        """As in `StableDiffusionXLPipeline`, through the language encoder and the adapter.

        The negative prompt, "" unless given, takes the same way.
        """
        given = {
            "prompt_2": prompt_2,
            "negative_prompt_2": negative_prompt_2,
            "clip_skip": clip_skip,
        }
        if unused := [name for name, value in given.items() if value is not None]:
            raise ValueError(
                f"{', '.join(unused)}: of the English text encoders, which aren't used here"
            )
        device = device or self._execution_device
        if prompt_embeds is None:
            prompts = [prompt] if isinstance(prompt, str) else list(prompt)
            prompt_embeds, pooled_prompt_embeds = self.adapter.encode(prompts, self, device)
        if do_classifier_free_guidance and negative_prompt_embeds is None:
            negative_prompt_embeds, negative_pooled_prompt_embeds = self.adapter.encode_negative(
                negative_prompt, len(prompt_embeds), self, device
            )
        # With embeddings given, what is left to the parent is the number of images per prompt.
        encoded = super().encode_prompt(
            None,
            device=device,
            num_images_per_prompt=num_images_per_prompt,
            do_classifier_free_guidance=do_classifier_free_guidance,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
            lora_scale=lora_scale,
        )
        # Where no dtype is asked for, transformers keeps that of the files and diffusers doesn't.
        return tuple(None if one is None else one.to(self.unet.dtype) for one in encoded)

    def save_config(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Writes model_index.json and, beside it, the code that it names: the folder is whole."""
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        self.adapter.save_code(self, save_directory)
