"""The program that samples: tokens and noise in, pixels out. `pipeline` makes what it takes."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, UInt8, UInt32

from pea_jax.diffusion import guidance, solvers
from pea_jax.models.conditioning import Conditioning
from pea_jax.models.vae import rows_at_once
from pea_jax.runtime import parallel

#: Ids and mask of texts.
Tokens = tuple[Int[Array | np.ndarray, "B L"], Int[Array | np.ndarray, "B L"]]


@dataclasses.dataclass(frozen=True)
class Networks:
    """The static side of the networks: hashable, and equal where architectures are equal."""

    unet: nnx.GraphDef
    vae: nnx.GraphDef
    text: nnx.GraphDef
    adapter: nnx.GraphDef | None


@functools.partial(jax.jit, static_argnums=1)
def initial_noise(
    seeds: UInt32[Array | np.ndarray, "N"], shape: tuple[int, int, int]
) -> Float[Array, "N h w c"]:
    """The standard normal latents that sampling starts from, each from its own seed alone.

    Args:
      seeds: uint32 [N].
      shape: (h, w, c) of one sample's latents.
    """
    return solvers.gaussian(keys(seeds, 0), shape)


def keys(seeds: UInt32[Array, "N"], stream: int) -> Key[Array, "N"]:
    """One key a seed; 0 is the stream of the initial noise, 1 that of the solver's noise."""
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), stream))(seeds)


@functools.partial(jax.jit, static_argnums=(0, 1))
def program(
    networks: Networks,
    data_shards: int,
    states: dict[str, Any],
    batch: dict[str, Array | Tokens],
    plan: solvers.Plan,
    strengths: Float[Array, "2"],
) -> UInt8[Array, "B H W 3"]:
    """Text to pixels; weights are arguments, so one program serves every set of them.

    Args:
      networks: of which the one without an adapter is the English base model.
      data_shards: devices that the batch is split over.
      states: of each of the networks.
      batch: "positive", the prompts' tokens; "noise", latents [B, h, w, c]; "seeds" [B], of the
        solver's noise; with guidance "negative", tokens too, and "kept" [B] where the conditioning
        of some of these is zero (1 is kept, 0 not).
      plan: the solver's steps.
      strengths: guidance_scale and guidance_rescale.
    """
    unet = nnx.merge(networks.unet, states["unet"])
    vae = nnx.merge(networks.vae, states["vae"])
    conditioning = _encode(networks, states, *batch["positive"])
    guided = "negative" in batch
    if guided:
        negative = _encode(networks, states, *batch["negative"])
        if "kept" in batch:
            negative = jax.tree.map(functools.partial(_keep, batch["kept"]), negative)
        conditioning = jax.tree.map(_interleave, conditioning, negative)
    added = None
    if unet.config.pooled_width is not None:
        size = [side * vae.config.downsampling_factor for side in batch["noise"].shape[1:3]]
        # SDXL's time ids (H, W, top, left, H, W): of a picture of this size, not cropped.
        added = jnp.tile(
            jnp.array([[*size, 0, 0, *size]], jnp.float32), (len(conditioning.tokens), 1)
        )

    def denoise(latents: Float[Array, "B h w c"], timestep: Float[Array, ""]) -> Array:
        inputs = _interleave(latents, latents) if guided else latents
        prediction, _ = unet(inputs, jnp.full(len(inputs), timestep), conditioning, added)
        prediction = prediction.astype(jnp.float32)
        if not guided:
            return prediction
        pairs = prediction.reshape(-1, 2, *latents.shape[1:])
        conditional, unconditional = pairs[:, 0], pairs[:, 1]
        prediction = guidance.classifier_free_guidance(conditional, unconditional, strengths[0])
        return guidance.rescale(prediction, conditional, strengths[1])

    latents = solvers.sample(plan.solver, denoise, batch["noise"], plan, keys(batch["seeds"], 1))

    def decode(latents: Float[Array, "b h w c"]) -> UInt8[Array, "b H W 3"]:
        images = vae.decode(latents / vae.config.scaling_factor).astype(jnp.float32)
        return jnp.round(jnp.clip(images / 2 + 0.5, 0, 1) * 255).astype(jnp.uint8)

    factor = vae.config.downsampling_factor
    most = rows_at_once(*(side * factor for side in latents.shape[1:3]))
    return parallel.in_slices(decode, latents, most, data_shards)


def _encode(
    networks: Networks,
    states: dict[str, Any],
    ids: Int[Array, "B L"],
    mask: Int[Array, "B L"],
) -> Conditioning:
    tower = nnx.merge(networks.text, states["text"])
    if networks.adapter is None:
        return tower(ids, mask)
    adapter = nnx.merge(networks.adapter, states["adapter"])
    return adapter(tower(ids, mask).tokens)


def _keep(kept: Float[Array, "B"], rows: Float[Array, "B *rest"]) -> Array:
    """The rows where `kept` is 1, and zeros where it is 0."""
    return rows * kept.reshape(-1, *[1] * (rows.ndim - 1)).astype(rows.dtype)


def _interleave(first: Float[Array, "B *rest"], second: Float[Array, "B *rest"]) -> Array:
    """[first_0, second_0, first_1, ...]: pairs of a sample stay on its device, unlike halves."""
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])
