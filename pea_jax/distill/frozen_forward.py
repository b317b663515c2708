"""What the loss takes as given: nothing in it depends on the adapter, and no gradient enters it.

pixels -> VAE posterior, or its moments as they were kept -> latents -> noisy latents x_t
native caption  -> language encoder -> tokens
English caption -> base text encoder -> UNet(x_t) -> prediction, features     teacher
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from pea_jax.diffusion.schedule import Schedule, add_noise, target
from pea_jax.distill.batch import MOMENTS, PARALLEL, PIXELS, Fields, Layout
from pea_jax.distill.losses import DistillSettings
from pea_jax.distill.noise import draw
from pea_jax.distill.state import Networks
from pea_jax.models.conditioning import Conditioning
from pea_jax.models.vae import rows_at_once
from pea_jax.runtime import parallel

Batch = Mapping[str, Fields]
Frozen = Mapping[str, Any]


class Given(NamedTuple):
    """What the loss takes as given.

    Attributes:
        noisy: x_t, [B, h, w, C].
        timesteps: t, [B].
        added: SDXL's time ids, [B, 6]; None for families that take none.
        target: the noise or the velocity, [B, h, w, C].
        hidden: the language encoder's tokens, [B, L, D_in].
        empty_hidden: its tokens of the empty prompt, [1, L, D_in].
        dropped: rows whose prompt is dropped, [B]; None where none ever is.
        teacher: prediction and features of the parallel rows; None where no term needs them.
    """

    noisy: Float[Array, "B h w C"]
    timesteps: Int[Array, "B"]
    added: Float[Array, "B 6"] | None
    target: Float[Array, "B h w C"]
    hidden: Float[Array, "B L D_in"]
    empty_hidden: Float[Array, "1 L D_in"]
    dropped: Bool[Array, "B"] | None
    teacher: tuple[Float[Array, "P h w C"], dict[str, Float[Array, "P _ _ _"]]] | None


def give(
    networks: Networks,
    schedule: Schedule,
    settings: DistillSettings,
    layout: Layout,
    unet: nnx.Module,
    frozen: Frozen,
    batch: Batch,
    key: PRNGKeyArray,
    picture: str,
) -> Given:
    """Runs everything but the student's adapter and UNet.

    Args:
        networks: of `split_networks`.
        schedule: the base model's.
        settings: the choices of the method.
        layout: of the parts in the batch.
        unet: with its weights.
        frozen: of `split_networks`.
        batch: the rows, with their "place" in their part.
        key: of this step.
        picture: what the batch holds of pictures, `parts.PIXELS` or `parts.MOMENTS`.
    """
    fields = (picture, "time_ids", "ids", "mask")
    student = layout.join([{name: batch[part][name] for name in fields} for part in layout.rows])
    empty = frozen["empty"]

    vae = nnx.merge(networks.vae, frozen["vae"])
    if picture == MOMENTS:
        mean, logvar = student[MOMENTS][:, 0], student[MOMENTS][:, 1]
    else:
        mean, logvar = posterior(vae, student[PIXELS], layout.data_shards)
    places = {part: batch[part]["place"] for part in layout.rows}
    draws = draw(key, layout, mean.shape[1:], schedule, settings, places)
    latents = vae.config.scaling_factor * (mean + jnp.exp(0.5 * logvar) * draws.posterior)
    alpha_bar = jnp.asarray(schedule.alphas_cumprod)[draws.timesteps]
    noisy = add_noise(latents, draws.noise, alpha_bar)
    dropped = draws.dropped if settings.prompt_drop else None
    micro_conditioned = unet.config.pooled_width is not None
    added = student["time_ids"].astype(jnp.float32) if micro_conditioned else None

    teacher = None
    if settings.distils and PARALLEL in layout.rows:
        text_encoder = nnx.merge(networks.text_encoder, frozen["text_encoder"])
        seen, timesteps, added_here, dropped_here = layout.take(
            (noisy, draws.timesteps, added, dropped), PARALLEL
        )
        conditioning = _teacher(text_encoder, batch[PARALLEL], empty, dropped_here)
        teacher = unet(seen, timesteps, conditioning, added_here)

    language_encoder = nnx.merge(networks.language_encoder, frozen["language_encoder"])
    return Given(
        noisy=noisy,
        timesteps=draws.timesteps,
        added=added,
        target=target(schedule, latents, draws.noise, alpha_bar),
        hidden=_hidden(language_encoder, student["ids"], student["mask"]),
        empty_hidden=_hidden(language_encoder, empty["ids"], empty["mask"]),
        dropped=dropped,
        teacher=teacher,
    )


def posterior(
    vae: nnx.Module, pixels: UInt8[Array, "B H W 3"], data_shards: int = 1
) -> tuple[Float[Array, "B h w C"], Float[Array, "B h w C"]]:
    """Mean and log variance of the latents of the images, neither sampled nor scaled.

    Args:
        vae: that encodes, a few rows after another (`vae.rows_at_once`).
        pixels: of the images.
        data_shards: devices that they are split over.
    """

    def encode(pixels: UInt8[Array, "b H W 3"]) -> tuple[Array, Array]:
        mean, logvar = vae.encode(pixels.astype(jnp.float32) / 127.5 - 1.0)
        return mean.astype(jnp.float32), logvar.astype(jnp.float32)

    return parallel.in_slices(encode, pixels, rows_at_once(*pixels.shape[1:3]), data_shards)


def drop(
    conditioning: Conditioning, nothing: Conditioning, dropped: Bool[Array, "B"]
) -> Conditioning:
    """Replaces the tokens of the rows that are dropped by those of the empty prompt.

    The pooled vector stays (method.md, "Prompt drop").

    Args:
        conditioning: of the batch, tokens [B, L, D].
        nothing: of the empty prompt, tokens [1, L, D].
        dropped: which rows.
    """
    tokens = jnp.where(dropped[:, None, None], nothing.tokens, conditioning.tokens)
    return dataclasses.replace(conditioning, tokens=tokens)


def _hidden(
    encoder: nnx.Module, ids: Int[Array, "B L"], mask: Int[Array, "B L"]
) -> Float[Array, "B L D_in"]:
    return encoder(ids, mask).tokens.astype(jnp.float32)


def _teacher(
    text_encoder: nnx.Module,
    part: Fields,
    empty: Fields,
    dropped: Bool[Array, "P"] | None,
) -> Conditioning:
    """The English conditioning."""
    conditioning = text_encoder(part["english_ids"], part["english_mask"])
    if dropped is None:
        return conditioning
    return drop(conditioning, text_encoder(empty["english_ids"], empty["english_mask"]), dropped)
