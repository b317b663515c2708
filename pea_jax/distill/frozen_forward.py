"""The part of the loss that the adapter does not change: no gradient enters it.

pixels -> VAE posterior, or its stored moments -> latents -> noisy latents x_t
native caption  -> language encoder -> hidden states
English caption -> base text encoder -> UNet(x_t) -> prediction, features     teacher
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from pea_jax.diffusion.schedule import Schedule, diffuse
from pea_jax.distill.batch import MOMENTS, PARALLEL, PIXELS, BatchLayout, Fields
from pea_jax.distill.losses import DistillSettings
from pea_jax.distill.noise import draw
from pea_jax.distill.state import Networks
from pea_jax.models.conditioning import Conditioning
from pea_jax.models.latents import LatentCodec

Batch = Mapping[str, Fields]
Frozen = Mapping[str, Any]


class FrozenOutputs(NamedTuple):
    """What the frozen networks computed for some rows.

    Attributes:
        noisy: x_t, [B, h, w, C].
        timesteps: t, [B].
        added: the UNet's added conditioning, [B, 6]; None for families that have none.
        target: the noise or the velocity, [B, h, w, C].
        hidden: hidden states of the language encoder, [B, L, D_in].
        empty_hidden: those of the empty prompt, [1, L, D_in].
        dropped: rows whose prompt is dropped, [B]; None if the drop probability is 0.
        teacher: prediction and features of the parallel rows; None if no term needs them.
    """

    noisy: Float[Array, "B h w C"]
    timesteps: Int[Array, "B"]
    added: Float[Array, "B 6"] | None
    target: Float[Array, "B h w C"]
    hidden: Float[Array, "B L D_in"]
    empty_hidden: Float[Array, "1 L D_in"]
    dropped: Bool[Array, "B"] | None
    teacher: tuple[Float[Array, "P h w C"], dict[str, Float[Array, "P _ _ _"]]] | None


def frozen_forward(
    networks: Networks,
    schedule: Schedule,
    settings: DistillSettings,
    layout: BatchLayout,
    unet: nnx.Module,
    frozen: Frozen,
    batch: Batch,
    key: PRNGKeyArray,
    picture: str,
) -> FrozenOutputs:
    """Runs everything except the student's adapter and UNet.

    Args:
        networks: from `split_networks`.
        schedule: the base model's noise schedule.
        settings: the choices of the method.
        layout: where the parts lie in the batch.
        unet: with its weights.
        frozen: from `split_networks`.
        batch: the rows, with their "place" in their part.
        key: random key of this step.
        picture: what the batch holds of images, `batch.PIXELS` or `batch.MOMENTS`.
    """
    fields = (picture, "time_ids", "ids", "mask")
    student = layout.join([{name: batch[part][name] for name in fields} for part in layout.rows])
    empty = frozen["empty"]

    codec = LatentCodec(nnx.merge(networks.vae, frozen["vae"]), layout.data_shards)
    if picture == MOMENTS:
        mean, logvar = student[MOMENTS][:, 0], student[MOMENTS][:, 1]
    else:
        mean, logvar = codec.moments(student[PIXELS])
    places = {part: batch[part]["place"] for part in layout.rows}
    draws = draw(key, layout, mean.shape[1:], schedule, settings, places)
    latents = codec.sample(mean, logvar, draws.posterior)
    noisy, wanted = diffuse(schedule, latents, draws.noise, draws.timesteps)
    dropped = draws.dropped if settings.prompt_drop else None
    text_encoder = nnx.merge(networks.text_encoder, frozen["text_encoder"])
    added = text_encoder.family.added(student["time_ids"])

    teacher = None
    if settings.distils and PARALLEL in layout.rows:
        teacher_noisy, timesteps, teacher_added, teacher_dropped = layout.take(
            (noisy, draws.timesteps, added, dropped), PARALLEL
        )
        conditioning = _teacher(text_encoder, batch[PARALLEL], empty, teacher_dropped)
        teacher = unet(teacher_noisy, timesteps, conditioning, teacher_added)

    language_encoder = nnx.merge(networks.language_encoder, frozen["language_encoder"])
    return FrozenOutputs(
        noisy=noisy,
        timesteps=draws.timesteps,
        added=added,
        target=wanted,
        hidden=_hidden(language_encoder, student["ids"], student["mask"]),
        empty_hidden=_hidden(language_encoder, empty["ids"], empty["mask"]),
        dropped=dropped,
        teacher=teacher,
    )


def drop(
    conditioning: Conditioning, empty: Conditioning, dropped: Bool[Array, "B"]
) -> Conditioning:
    """Replaces the tokens of dropped rows by those of the empty prompt.

    The pooled vector stays (method.md, "Prompt drop").

    Args:
        conditioning: of the batch, tokens [B, L, D].
        empty: of the empty prompt, tokens [1, L, D].
        dropped: the rows to replace.
    """
    tokens = jnp.where(dropped[:, None, None], empty.tokens, conditioning.tokens)
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
