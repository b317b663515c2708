"""What a solver calls: the UNet with its text, its guidance and whatever else conditions it.

A `Denoiser` is made outside the compiled sampler and is an argument of it, so one program serves
all weights, prompts and guidance scales of the same shapes. A plug-in (a ControlNet, the mask and
image of inpainting) is one more field here; the solver and the program around it don't change.
"""

import dataclasses
import functools
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from pea_jax.diffusion import guidance
from pea_jax.diffusion.solvers import Denoise
from pea_jax.families import Family
from pea_jax.models.conditioning import Conditioning

#: Token ids and padding mask of some texts.
Tokens = tuple[Int[Array | np.ndarray, "B L"], Int[Array | np.ndarray, "B L"]]


@typing.no_type_check  # tree transformations rebuild it around specs, shapes and placeholders
@functools.partial(jax.tree_util.register_dataclass, data_fields=("state",), meta_fields=("graph",))
@dataclasses.dataclass(frozen=True)
class Network:
    """A network as a pytree: equal structures have equal programs, and the weights are data."""

    graph: nnx.GraphDef
    state: Any

    @classmethod
    def of(cls, module: nnx.Module) -> "Network":
        """Shares the module's arrays."""
        return cls(*nnx.split(module))

    def merge(self) -> nnx.Module:
        """The module, inside a program."""
        return nnx.merge(self.graph, self.state)


@typing.no_type_check
@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("unet", "text", "adapter", "positive", "negative", "kept", "time_ids", "guidance"),
    meta_fields=("family",),
)
@dataclasses.dataclass(frozen=True)
class Denoiser:
    """Noisy latents -> the prediction of the noise (or of what the schedule says).

    Attributes:
        family: of the base model; static.
        unet: the base's denoiser.
        text: the language encoder, or the base's own text side.
        adapter: between the language encoder and the UNet; None for English.
        positive: the prompts' tokens.
        negative: the negative prompts' tokens; None without guidance, and then there is no second
            half of the batch.
        kept: [B], 0 where the negative conditioning is zero instead of encoded; None for nowhere.
        time_ids: SDXL's, [B, 6] (`Family.added`); every family gets them.
        guidance: guidance_scale and guidance_rescale, [2].
    """

    family: Family
    unet: Network
    text: Network
    adapter: Network | None
    positive: Tokens
    negative: Tokens | None
    kept: Float[Array, "B"] | None
    time_ids: Int[Array, "B 6"]
    guidance: Float[Array, "2"]

    def start(self) -> Denoise:
        """Encodes the texts once, inside a program; returns what each step calls."""
        unet = self.unet.merge()
        conditioning, time_ids = self._encode(self.positive), self.time_ids
        if self.negative is not None:
            negative = self._encode(self.negative)
            if self.kept is not None:
                negative = jax.tree.map(functools.partial(_keep, self.kept), negative)
            conditioning = jax.tree.map(_interleave, conditioning, negative)
            time_ids = _interleave(time_ids, time_ids)
        added = self.family.added(time_ids)

        def denoise(latents: Float[Array, "B h w c"], timestep: Float[Array, ""]) -> Array:
            inputs = latents if self.negative is None else _interleave(latents, latents)
            prediction, _ = unet(inputs, jnp.full(len(inputs), timestep), conditioning, added)
            return self._guided(prediction.astype(jnp.float32))

        return denoise

    def _guided(self, prediction: Float[Array, "R h w c"]) -> Float[Array, "B h w c"]:
        """Classifier-free guidance over the two predictions of each sample."""
        if self.negative is None:
            return prediction
        pairs = prediction.reshape(-1, 2, *prediction.shape[1:])
        conditional, unconditional = pairs[:, 0], pairs[:, 1]
        scale, rescale = self.guidance
        prediction = guidance.classifier_free_guidance(conditional, unconditional, scale)
        return guidance.rescale(prediction, conditional, rescale)

    def _encode(self, tokens: Tokens) -> Conditioning:
        tower = self.text.merge()
        if self.adapter is None:
            return tower(*tokens)
        return self.adapter.merge()(tower(*tokens).tokens)


def _keep(kept: Float[Array, "B"], rows: Float[Array, "B *rest"]) -> Array:
    """The rows where `kept` is 1, and zeros where it is 0."""
    return rows * kept.reshape(-1, *[1] * (rows.ndim - 1)).astype(rows.dtype)


def _interleave(first: Array, second: Array) -> Array:
    """[first_0, second_0, first_1, ...]: the pair of a sample stays on its device."""
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])
