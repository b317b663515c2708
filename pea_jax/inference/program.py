"""The compiled sampler: a denoiser and noise in, pixels out. `pipeline` makes what it takes."""

import functools

import jax
import numpy as np
from jaxtyping import Array, Float, Key, UInt8, UInt32

from pea_jax.diffusion import solvers
from pea_jax.inference.denoiser import Denoiser, Network
from pea_jax.models.latents import LatentCodec


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
    """One key a seed; stream 0 is for the initial noise, 1 for the solver's noise."""
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), stream))(seeds)


@functools.partial(jax.jit, static_argnames="data_shards")
def sample_images(
    denoiser: Denoiser,
    vae: Network,
    noise: Float[Array, "B h w c"],
    seeds: UInt32[Array, "B"],
    plan: solvers.Plan,
    *,
    data_shards: int,
) -> UInt8[Array, "B H W 3"]:
    """Noise to pixels; weights are arguments, so one program serves every set of them.

    Args:
      denoiser: what the solver calls.
      vae: decodes the latents.
      noise: standard normal latents.
      seeds: of the solver's noise.
      plan: the solver's steps.
      data_shards: number of devices that the batch is split over.
    """
    latents = solvers.sample(denoiser.start(), noise, plan, keys(seeds, 1))
    return LatentCodec(vae.merge(), data_shards).decode(latents)
