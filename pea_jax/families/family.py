"""What a family of base models says about itself."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from pea_jax.models.conditioning import Conditioning
from pea_jax.models.text.towers import TextOutput


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
class Family:
    """All that differs between base models; nothing else in the package asks which one it is.

    There is one object a family, so that a compiled program can hold it as a static value.

    Attributes:
        name: for people.
        text_encoders: parts of the folder with a text tower -> the part with its tokenizer.
        pooled: the text encoder whose projected, pooled vector conditions the UNet; None if none.
        condition: the towers' outputs, in the order of `text_encoders` -> the conditioning.
        time_ids: whether the UNet takes SDXL's six time ids.
        upcasts_vae: whether the VAE is computed in float32 where its config says `force_upcast`.
        diffusers: the pipeline that `pea-jax export` writes.
    """

    name: str
    text_encoders: Mapping[str, str]
    pooled: str | None
    condition: Callable[[Sequence[TextOutput]], Conditioning]
    time_ids: bool
    upcasts_vae: bool
    diffusers: DiffusersPipeline

    def added(self, time_ids: Num[Array, "B 6"]) -> Float[Array, "B 6"] | None:
        """The UNet's added conditioning from (original H, W, crop top, left, target H, W)."""
        return time_ids.astype(jnp.float32) if self.time_ids else None
