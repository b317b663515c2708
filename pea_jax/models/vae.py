"""The autoencoder between pixels and latents: AutoencoderKL of Stable Diffusion.

Source: Rombach et al. 2022 (arXiv 2112.10752), section 3.1; the layers and their names are those
of the diffusers checkpoints.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pea_jax.models.attention.core import dot_product_attention
from pea_jax.models.blocks import Downsample, GroupNorm, ResnetBlock, Upsample, conv3x3
from pea_jax.runtime.config_fields import (
    COUNT,
    FLAG,
    NUMBER,
    Config,
    Rule,
    field,
    one_of,
    per_level,
    require,
)

GROUP_NORM_EPS = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)

#: Fields that change the network, with their only supported values.
_ONLY = {
    "_class_name": one_of("AutoencoderKL"),
    "act_fn": one_of("silu"),
    "shift_factor": one_of(None),
    "latents_mean": one_of(None),
    "latents_std": one_of(None),
    "use_quant_conv": one_of(True),
    "use_post_quant_conv": one_of(True),
    "mid_block_add_attention": one_of(True),
}


@dataclasses.dataclass(frozen=True)
class VAEConfig(Config, label="VAE config", only=_ONLY, ignored=("_*", "sample_size")):
    """The shape of an autoencoder, in the names and with the defaults of diffusers.

    Attributes:
        in_channels: channels of the images to encode.
        out_channels: channels of the decoded images.
        latent_channels: channels of the latents.
        block_out_channels: width of each level, finest first; every level but the last halves the
            resolution.
        layers_per_block: resnets per level of the encoder; the decoder has one more.
        norm_num_groups: groups of every group norm.
        scaling_factor: the UNet gets scaling_factor * latents; `encode` and `decode` do not apply
            it.
        force_upcast: whether the network needs more than 16 bits, as SDXL's does; only the loader
            uses it.
    """

    in_channels: int = field(COUNT, 3)
    out_channels: int = field(COUNT, 3)
    latent_channels: int = field(COUNT, 4)
    block_out_channels: tuple[int, ...] = field(
        per_level(COUNT), (64,), multiple_of="norm_num_groups"
    )
    layers_per_block: int = field(COUNT, 1)
    norm_num_groups: int = field(COUNT, 32)
    scaling_factor: float = field(NUMBER, 0.18215)
    force_upcast: bool = field(FLAG, True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "VAEConfig":
        """The config in a checkpoint's config.json, where all levels have the same block type."""
        widths = values.get("block_out_channels", cls.block_out_channels)
        levels = len(widths) if isinstance(widths, list | tuple) else 1
        down, up = "DownEncoderBlock2D", "UpDecoderBlock2D"
        return super().from_dict(
            {"down_block_types": [down], "up_block_types": [up], **values},
            down_block_types=_repeated(down, levels),
            up_block_types=_repeated(up, levels),
        )

    @property
    def downsampling_factor(self) -> int:
        """Pixels per latent along one side: 8 for Stable Diffusion."""
        return 2 ** (len(self.block_out_channels) - 1)


def _repeated(block_type: str, levels: int) -> Rule:
    expected = (block_type,) * levels
    return require(f"{levels} of {block_type!r}", lambda value: value == expected)


class VAE(nnx.Module):
    """encode: images -> the mean and log variance of their latents; decode: latents -> images."""

    def __init__(
        self,
        config: VAEConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
    ):
        leaf = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        moments = 2 * config.latent_channels
        self.config = config
        self.encoder = _Encoder(config, **leaf)
        self.decoder = _Decoder(config, **leaf)
        self.quant_conv = nnx.Conv(moments, moments, (1, 1), **leaf)
        self.post_quant_conv = nnx.Conv(
            config.latent_channels, config.latent_channels, (1, 1), **leaf
        )

    def encode(
        self, images: Float[Array, "B H W C"]
    ) -> tuple[Float[Array, "B h w Z"], Float[Array, "B h w Z"]]:
        """The Gaussian posterior of the latents, not sampled and not scaled.

        Args:
            images: [B, H, W, in_channels] in [-1, 1]; H and W multiples of the downsampling factor.

        Returns:
            mean and logvar, [B, H/factor, W/factor, latent_channels] each, in the compute dtype;
            logvar is clipped to [-30, 20], as in diffusers. A sample is
            mean + exp(logvar / 2) * noise.

        Raises:
            ValueError: H or W is not a multiple of the downsampling factor.
        """
        height, width = images.shape[1:3]
        factor = self.config.downsampling_factor
        if height % factor or width % factor:
            raise ValueError(
                f"VAE.encode: expected a height and width that are multiples of {factor}, "
                f"got {height}x{width}"
            )
        mean, logvar = jnp.split(self.quant_conv(self.encoder(images)), 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)

    def decode(self, latents: Float[Array, "B h w Z"]) -> Float[Array, "B H W C"]:
        """The images of latents that are already divided by the scaling factor.

        Returns:
            [B, factor * h, factor * w, out_channels], about [-1, 1] and not clipped, in the compute
            dtype.
        """
        return self.decoder(self.post_quant_conv(latents))


class _Encoder(nnx.Module):
    """conv_in, the levels from fine to coarse, mid, then norm, silu and conv_out."""

    def __init__(self, config: VAEConfig, **leaf):
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = conv3x3(config.in_channels, widths[0], **leaf)
        self.down_blocks = nnx.List([])
        for level, width in enumerate(widths):
            before = widths[max(level - 1, 0)]
            resnets = _resnets(before, width, config.layers_per_block, groups, **leaf)
            # Padding 0: below and to the right only.
            down = [Downsample(width, padding=0, **leaf)] if level < len(widths) - 1 else []
            self.down_blocks.append(_Level(resnets=nnx.List(resnets), downsamplers=nnx.List(down)))
        self.mid_block = _MidBlock(widths[-1], groups, **leaf)
        self.conv_norm_out = GroupNorm(widths[-1], groups, GROUP_NORM_EPS, **leaf)
        self.conv_out = conv3x3(widths[-1], 2 * config.latent_channels, **leaf)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w M"]:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class _Decoder(nnx.Module):
    """conv_in, mid, the levels from coarse to fine, then norm, silu and conv_out."""

    def __init__(self, config: VAEConfig, **leaf):
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = conv3x3(config.latent_channels, widths[0], **leaf)
        self.mid_block = _MidBlock(widths[0], groups, **leaf)
        self.up_blocks = nnx.List([])
        for level, width in enumerate(widths):
            before = widths[max(level - 1, 0)]
            resnets = _resnets(before, width, config.layers_per_block + 1, groups, **leaf)
            up = [Upsample(width, **leaf)] if level < len(widths) - 1 else []
            self.up_blocks.append(_Level(resnets=nnx.List(resnets), upsamplers=nnx.List(up)))
        self.conv_norm_out = GroupNorm(widths[-1], groups, GROUP_NORM_EPS, **leaf)
        self.conv_out = conv3x3(widths[-1], config.out_channels, **leaf)

    def __call__(self, x: Float[Array, "B h w Z"]) -> Float[Array, "B H W C"]:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class _Level(nnx.Dict):
    """Resnets, then a resampler but at the last level: DownEncoderBlock2D or UpDecoderBlock2D."""

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w O"]:
        resamplers = (*self.get("downsamplers", ()), *self.get("upsamplers", ()))
        for layer in (*self.resnets, *resamplers):
            x = layer(x)
        return x


class _MidBlock(nnx.Module):
    """Resnet, attention, resnet: UNetMidBlock2D."""

    def __init__(self, channels: int, groups: int, **leaf):
        self.resnets = nnx.List(_resnets(channels, channels, 2, groups, **leaf))
        self.attentions = nnx.List([_Attention(channels, groups, **leaf)])

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class _Attention(nnx.Module):
    """x + to_out(attention(group_norm(x))) over all positions, with one full-width head."""

    def __init__(self, channels: int, groups: int, **leaf):
        self.group_norm = GroupNorm(channels, groups, GROUP_NORM_EPS, **leaf)
        self.to_q = nnx.Linear(channels, channels, **leaf)
        self.to_k = nnx.Linear(channels, channels, **leaf)
        self.to_v = nnx.Linear(channels, channels, **leaf)
        self.to_out = nnx.List([nnx.Linear(channels, channels, **leaf)])

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        batch, height, width, channels = x.shape
        tokens = self.group_norm(x).reshape(batch, height * width, 1, channels)
        attended = dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x + self.to_out[0](attended.reshape(x.shape))


def _resnets(
    in_channels: int, out_channels: int, count: int, groups: int, **leaf
) -> list[ResnetBlock]:
    """`count` resnets without a time embedding; the first one changes the width."""
    widths = [in_channels] + [out_channels] * (count - 1)
    options = {"groups": groups, "eps": GROUP_NORM_EPS, **leaf}
    return [ResnetBlock(width, out_channels, **options) for width in widths]
