"""What a family of base models says about itself."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from pea_jax.models.conditioning import Conditioning
from pea_jax.models.text.clip import CLIPText, CLIPTextConfig
from pea_jax.models.text.towers import TextOutput
from pea_jax.models.unet.unet import UNet, UNetConfig
from pea_jax.models.vae import VAE, VAEConfig


@dataclasses.dataclass(frozen=True, eq=False)
class DiffusersPipeline:
    """How diffusers runs the family.

    Attributes:
        name: the pipeline class of diffusers.
        encoded: names of what its `encode_prompt` returns, in order.
        index: entries of its model_index.json beside the networks.
    """

    name: str
    encoded: tuple[str, ...]
    index: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """One network of a base model, as a folder in diffusers format has it.

    Attributes:
        classes: its possible classes in model_index.json, the usual one first.
        stem: name of its weight files without the suffix.
        read_config: content of config.json -> the network's config.
        build: (config, *, rngs, dtype, param_dtype, ...) -> the network.
        ignore: patterns of keys in the weight files that the network does not have.
        tokenizer: the part with the tokenizer of a text tower; "" for other networks.
    """

    classes: tuple[str, ...]
    stem: str
    read_config: Callable[[Mapping[str, Any]], Any]
    build: Callable[..., nnx.Module]
    ignore: tuple[str, ...] = ()
    tokenizer: str = ""


#: The UNet and the VAE of both families, and a CLIP text tower of which only the tokens are used.
UNET = Part(("UNet2DConditionModel",), "diffusion_pytorch_model", UNetConfig.from_dict, UNet)
KL_VAE = Part(("AutoencoderKL",), "diffusion_pytorch_model", VAEConfig.from_dict, VAE)
CLIP_TEXT = Part(
    ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "model",
    CLIPTextConfig.from_dict,
    CLIPText,
    ignore=(r"text_projection\.weight",),
    tokenizer="tokenizer",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """All that differs between base models; other code asks the family, and not which one it is.

    There is one object per family, so that a compiled program can hold it as a static value.

    Attributes:
        name: for messages.
        unet: the denoising network.
        vae: between pixels and latents.
        text_encoders: the text towers, by their part of the folder.
        pooled: the text encoder whose projected, pooled vector conditions the UNet; None if none.
        condition: the towers' outputs, in the order of `text_encoders` -> the conditioning.
        time_ids: whether the UNet takes SDXL's six time ids.
        upcasts_vae: whether the VAE is computed in float32 where its config says `force_upcast`.
        diffusers: the pipeline that `pea-jax export` writes.
    """

    name: str
    unet: Part
    vae: Part
    text_encoders: Mapping[str, Part]
    pooled: str | None
    condition: Callable[[Sequence[TextOutput]], Conditioning]
    time_ids: bool
    upcasts_vae: bool
    diffusers: DiffusersPipeline

    @property
    def networks(self) -> dict[str, Part]:
        """Every network, by its part of the folder."""
        return {"unet": self.unet, "vae": self.vae, **self.text_encoders}

    def added(self, time_ids: Num[Array, "B 6"]) -> Float[Array, "B 6"] | None:
        """The UNet's added conditioning from (original H, W, crop top, left, target H, W)."""
        return time_ids.astype(jnp.float32) if self.time_ids else None
