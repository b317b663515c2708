"""Between pixels and the latents that a UNet sees: everything that knows both.

pixels -> moments -> latents      training, and `pea-jax prepare --latents`
latents -> pixels                 sampling
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from pea_jax.runtime import parallel

#: Pixels that one device encodes or decodes at a time. With 128 channels of 16 bits that is 67 MB
#: a layer, in products of 262,144 rows: more would not fill a chip better.
_PIXELS_AT_ONCE = 512 * 512


def rows_at_once(height: int, width: int) -> int:
    """Number of images of a size, in pixels, that a device encodes or decodes at a time.

    All rows at once would need as much memory as the gradient of a training step: an image has 64
    times as many positions as its latents (docs/performance.md, "Training, by preflight").
    """
    return max(1, _PIXELS_AT_ONCE // (height * width))


@dataclasses.dataclass(frozen=True)
class LatentCodec:
    """A VAE with what surrounds it: value ranges, sampling, scaling, and slices of rows.

    Attributes:
        vae: the autoencoder.
        data_shards: number of devices that the rows are split over.
    """

    vae: nnx.Module
    data_shards: int = 1

    def moments(
        self, pixels: UInt8[Array, "B H W 3"]
    ) -> tuple[Float[Array, "B h w C"], Float[Array, "B h w C"]]:
        """Mean and log variance of the VAE's posterior, float32, neither sampled nor scaled."""

        def encode(pixels: UInt8[Array, "b H W 3"]) -> tuple[Array, Array]:
            mean, logvar = self.vae.encode(pixels.astype(jnp.float32) / 127.5 - 1.0)
            return mean.astype(jnp.float32), logvar.astype(jnp.float32)

        most = rows_at_once(*pixels.shape[1:3])
        return parallel.in_slices(encode, pixels, most, self.data_shards)

    def sample(
        self,
        mean: Float[Array, "B h w C"],
        logvar: Float[Array, "B h w C"],
        noise: Float[Array, "B h w C"],
    ) -> Float[Array, "B h w C"]:
        """The latents that the UNet sees: scaling_factor * (mean + exp(logvar / 2) * noise)."""
        return self.vae.config.scaling_factor * (mean + jnp.exp(0.5 * logvar) * noise)

    def decode(self, latents: Float[Array, "B h w C"]) -> UInt8[Array, "B H W 3"]:
        """Pixels of scaled latents; values beyond black and white are clipped."""
        config = self.vae.config

        def decode(latents: Float[Array, "b h w C"]) -> UInt8[Array, "b H W 3"]:
            images = self.vae.decode(latents / config.scaling_factor).astype(jnp.float32)
            return jnp.round(jnp.clip(images / 2 + 0.5, 0, 1) * 255).astype(jnp.uint8)

        most = rows_at_once(*(side * config.downsampling_factor for side in latents.shape[1:3]))
        return parallel.in_slices(decode, latents, most, self.data_shards)
