"""Everything random in a train step, as a pure function of a key."""

import dataclasses
import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from pea_jax.diffusion.schedule import Schedule
from pea_jax.distill.batch import PARTS, BatchLayout
from pea_jax.distill.losses import DistillSettings


@typing.no_type_check  # tree transformations rebuild it around specs, shapes and placeholders
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draws:
    """The random values for some rows of a batch.

    Attributes:
        posterior: standard normal noise for the sample from the VAE's posterior, [B, H, W, C].
        noise: the diffusion noise including its offset, [B, H, W, C].
        timesteps: uniform over the schedule, [B].
        dropped: whether the row's tokens are replaced by those of the empty prompt, [B].
    """

    posterior: Float[Array, "B H W C"]
    noise: Float[Array, "B H W C"]
    timesteps: Int[Array, "B"]
    dropped: Bool[Array, "B"]


def draw(
    key: PRNGKeyArray,
    layout: BatchLayout,
    latent_shape: tuple[int, int, int],
    schedule: Schedule,
    settings: DistillSettings,
    places: Mapping[str, Int[Array, "_"]] | None = None,
) -> Draws:
    """Draws for the student's batch.

    Every row has its own key, made of its part and its place in that part. Its draws do not depend
    on the devices, the other rows or their number.

    Args:
        key: random key of the step.
        layout: the parts' rows and their order in the batch.
        latent_shape: (H, W, C).
        schedule: gives the number of timesteps.
        settings: give prompt drop and noise offset.
        places: each part's row numbers; None is 0, 1, 2, ...
    """
    places = places or {name: jnp.arange(rows) for name, rows in layout.rows.items()}
    part = layout.join([jnp.full(rows, PARTS.index(name)) for name, rows in layout.rows.items()])
    place = layout.join([places[name] for name in layout.rows])

    def draw_row(part: Int[Array, ""], place: Int[Array, ""]) -> Draws:
        row_key = jax.random.fold_in(jax.random.fold_in(key, part), place)
        return _draw_row(row_key, latent_shape, schedule.num_train_timesteps, settings)

    return jax.vmap(draw_row)(part, place)


def _draw_row(
    key: PRNGKeyArray,
    latent_shape: tuple[int, int, int],
    num_train_timesteps: int,
    settings: DistillSettings,
) -> Draws:
    """Draws for one row, without the batch axis.

    The noise offset is one value a channel (Guttenberg 2023, "Diffusion with offset noise").
    """
    normal, offset, timestep, dropped = jax.random.split(key, 4)
    posterior, noise = jax.random.normal(normal, (2, *latent_shape))
    if settings.noise_offset:
        noise += settings.noise_offset * jax.random.normal(offset, (1, 1, latent_shape[-1]))
    return Draws(
        posterior=posterior,
        noise=noise,
        timesteps=jax.random.randint(timestep, (), 0, num_train_timesteps, jnp.int32),
        dropped=jax.random.bernoulli(dropped, settings.prompt_drop),
    )
