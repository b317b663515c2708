"""The blocks that a UNet's way down, middle and way up are made of: resnets with transformers.

Attribute names are those of the diffusers checkpoints. `resnet` holds the keywords that a network's
resnets share (groups, eps, time_width, output_scale); `leaf` those of every parameterised layer.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pea_jax.models.blocks import (
    Downsample,
    ResnetBlock,
    SpatialTransformer,
    TransformerSpec,
    Upsample,
)


class DownBlock(nnx.Module):
    """(resnet, transformer) x layers, then a downsampler: DownBlock2D and CrossAttnDownBlock2D.

    Without a `transformer` the block has resnets alone.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        layers: int,
        transformer: TransformerSpec | None,
        downsample_padding: int | None,
        resnet: dict,
        **leaf,
    ):
        widths = [in_channels] + [out_channels] * (layers - 1)
        self.resnets = nnx.List([ResnetBlock(w, out_channels, **resnet, **leaf) for w in widths])
        self.attentions = nnx.List(
            _transformers(layers, out_channels, transformer, resnet["groups"], leaf)
        )
        self.downsamplers = nnx.List([])
        if downsample_padding is not None:
            self.downsamplers.append(Downsample(out_channels, padding=downsample_padding, **leaf))

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        activated_time: Float[Array, "B T"],
        tokens: Float[Array, "B L E"],
    ) -> tuple[Float[Array, "B h w O"], list[Float[Array, "B _ _ O"]]]:
        """Gives the block's output and every inner output, in order, for the way up."""
        outputs = []
        for index, resnet in enumerate(self.resnets):
            x = resnet(x, activated_time)
            if self.attentions:
                x = self.attentions[index](x, tokens)
            outputs.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x)
            outputs.append(x)
        return x, outputs


class MidBlock(nnx.Module):
    """resnet, then (transformer, resnet) x layers: UNetMidBlock2DCrossAttn."""

    def __init__(
        self, channels: int, *, layers: int, transformer: TransformerSpec, resnet: dict, **leaf
    ):
        self.resnets = nnx.List(
            [ResnetBlock(channels, channels, **resnet, **leaf) for _ in range(layers + 1)]
        )
        self.attentions = nnx.List(
            _transformers(layers, channels, transformer, resnet["groups"], leaf)
        )

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        activated_time: Float[Array, "B T"],
        tokens: Float[Array, "B L E"],
    ) -> Float[Array, "B H W C"]:
        x = self.resnets[0](x, activated_time)
        for index, attention in enumerate(self.attentions):
            x = self.resnets[index + 1](attention(x, tokens), activated_time)
        return x


class UpBlock(nnx.Module):
    """(concatenate a skip, resnet, transformer) x layers, then an upsampler: [CrossAttn]UpBlock2D.

    `skip_widths` are the channels of the skips in the order in which they are used, the last of
    the way down first.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        skip_widths: Sequence[int],
        transformer: TransformerSpec | None,
        upsample: bool,
        resnet: dict,
        **leaf,
    ):
        widths = [in_channels] + [out_channels] * (len(skip_widths) - 1)
        self.resnets = nnx.List(
            [
                ResnetBlock(w + skip, out_channels, **resnet, **leaf)
                for w, skip in zip(widths, skip_widths, strict=True)
            ]
        )
        self.attentions = nnx.List(
            _transformers(len(skip_widths), out_channels, transformer, resnet["groups"], leaf)
        )
        self.upsamplers = nnx.List([Upsample(out_channels, **leaf)] if upsample else [])

    def __call__(
        self,
        x: Float[Array, "B h w C"],
        skips: Sequence[Float[Array, "B h w _"]],
        activated_time: Float[Array, "B T"],
        tokens: Float[Array, "B L E"],
        size: tuple[int, int] | None,
    ) -> Float[Array, "B H W O"]:
        """`size` is that of the next block's skips: a size that was halved with a remainder."""
        for index, (resnet, skip) in enumerate(zip(self.resnets, skips, strict=True)):
            x = resnet(jnp.concatenate([x, skip], axis=-1), activated_time)
            if self.attentions:
                x = self.attentions[index](x, tokens)
        for upsampler in self.upsamplers:
            x = upsampler(x, size)
        return x


def _transformers(
    count: int, channels: int, spec: TransformerSpec | None, groups: int, leaf: dict
) -> list[SpatialTransformer]:
    """`count` spatial transformers, or none where the block has none."""
    if spec is None:
        return []
    return [SpatialTransformer(channels, spec, groups=groups, **leaf) for _ in range(count)]
