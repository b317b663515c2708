"""A diffusers pipeline that takes prompts in the languages of its language encoder.

PEA-Diffusion, https://arxiv.org/abs/2311.17086: a language encoder and a small adapter stand in for
the English text side; UNet, VAE and scheduler are the base model's own, unchanged.

    pipe = DiffusionPipeline.from_pretrained(
        folder, custom_pipeline="pipeline", trust_remote_code=True
    )
    image = pipe("...").images[0]

LoRA, schedulers, offloading and the other arguments work as in the base model's pipeline. Other
pipelines of the same base (ControlNet, inpainting, image to image) take the prompt embeddings that
`encode_prompt` returns.
"""

import inspect
from pathlib import Path
from typing import ClassVar

import torch
from diffusers import ModelMixin
from diffusers import StableDiffusionPipeline as BasePipeline
from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: How many language encoders the adapter reads, side by side on the feature axis.
LANGUAGE_ENCODERS = 1

_SUFFIXES = ["", *(f"_{number}" for number in range(2, LANGUAGE_ENCODERS + 1))]
_PARTS = {
    **{f"language_encoder{suffix}": PreTrainedModel for suffix in _SUFFIXES},
    **{f"language_tokenizer{suffix}": PreTrainedTokenizerBase for suffix in _SUFFIXES},
    "adapter": ModelMixin,
}
_BASE_INIT = inspect.signature(BasePipeline.__init__)
_BASE_ENCODE = inspect.signature(BasePipeline.encode_prompt)


def _with_parts() -> inspect.Signature:
    """The base pipeline's arguments and our parts, which diffusers looks up in the signature."""
    kind = inspect.Parameter.KEYWORD_ONLY
    parts = [inspect.Parameter(name, kind, annotation=part) for name, part in _PARTS.items()]
    return _BASE_INIT.replace(parameters=[*_BASE_INIT.parameters.values(), *parts])


class PEAPipeline(BasePipeline):
    """The base model's pipeline whose prompts go through language encoders and an adapter.

    Args:
        language_encoder: the frozen encoder of the prompts' languages; further encoders are
            language_encoder_2, ...
        language_tokenizer: its tokenizer; prompts are padded to its `model_max_length`.
        adapter: maps the encoders' last hidden states to the UNet's conditioning.

    The other arguments are those of the base model's pipeline. Its English text encoders aren't
    used here; `from_pipe(pipe)` of the base pipeline's class is the English model.
    """

    model_cpu_offload_seq = "->".join(
        [*(name for name in _PARTS if "tokenizer" not in name), BasePipeline.model_cpu_offload_seq]
    )
    #: This file, which `save_pretrained` writes beside the model: whatever else is loaded later.
    code: ClassVar[str] = Path(__file__).read_text("utf-8")

    def __init__(self, *args, **kwargs):
        call = type(self).__init__.__signature__.bind(self, *args, **kwargs)
        call.apply_defaults()
        modules = dict(call.arguments)
        del modules["self"]
        parts = {name: modules.pop(name) for name in _PARTS}
        # The base pipeline rewrites a scheduler's steps_offset and clip_sample. It gets none, so
        # that the scheduler stays as it is configured, and images as they were in training.
        scheduler = modules.pop("scheduler")
        super().__init__(scheduler=None, **modules)
        self.register_modules(scheduler=scheduler, **parts)

    __init__.__signature__ = _with_parts()

    def encode_prompt(self, *args, **kwargs) -> tuple[torch.Tensor | None, ...]:
        """As in the base pipeline, through the language encoders and the adapter.

        The negative prompt, "" by default, takes the same way.
        """
        call = _BASE_ENCODE.bind(self, *args, **kwargs)
        call.apply_defaults()
        values = dict(call.arguments)
        del values["self"]
        english = ("prompt_2", "negative_prompt_2", "clip_skip")
        if unused := [name for name in english if values.get(name) is not None]:
            raise ValueError(
                f"{', '.join(unused)}: of the English text encoders, which aren't used here"
            )
        device = values["device"] = values["device"] or self._execution_device
        prompt, negative = values["prompt"], values["negative_prompt"]
        if values["prompt_embeds"] is None:
            prompts = [prompt] if isinstance(prompt, str) else list(prompt)
            _fill(values, "", self.adapter.encode(prompts, self, device))
        if values["do_classifier_free_guidance"] and values["negative_prompt_embeds"] is None:
            count = len(values["prompt_embeds"])
            encoded = self.adapter.encode_negative(negative, count, self, device)
            _fill(values, "negative_", encoded)
        # With embeddings, all that is left to the base pipeline is the number of images per prompt.
        values |= {"prompt": None, "negative_prompt": None}
        encoded = super().encode_prompt(**values)
        # Where no dtype is asked for, transformers keeps that of the files and diffusers doesn't.
        return tuple(None if one is None else one.to(self.unet.dtype) for one in encoded)

    encode_prompt.__signature__ = _BASE_ENCODE

    def save_config(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Writes model_index.json and, beside it, the code that it names: the folder is whole."""
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        self.adapter.save_code(self, save_directory)


def _fill(values: dict, prefix: str, encoded: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    """Put tokens, and the pooled vector where the base has one, in the place of the prompt."""
    values[f"{prefix}prompt_embeds"], pooled = encoded
    if f"{prefix}pooled_prompt_embeds" in values:
        values[f"{prefix}pooled_prompt_embeds"] = pooled
