"""The blocks that a UNet's way down, middle and way up are made of: resnets with transformers.

Attribute names are those of the diffusers checkpoints. `transformers` says what each spatial
transformer is made of; where it is empty the block has resnets alone. `resnet` holds the keywords
that a network's resnets share (groups, eps, time_width, output_scale); `leaf` those of every
parameterised layer. With `recompute` a gradient keeps the inputs of each resnet alone, as
`TransformerSpec.recompute` does for each layer of a transformer.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pea_jax.models.blocks import (
    Downsample,
    ResnetBlock,
    SpatialTransformer,
    TransformerSpec,
    Upsample,
    recomputed,
)


class DownBlock(nnx.Module):
    """(resnet, transformer) x layers, then a downsampler: DownBlock2D and CrossAttnDownBlock2D."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        layers: int,
        transformers: Sequence[TransformerSpec],
        downsample_padding: int | None,
        resnet: dict,
        recompute: bool = False,
        **leaf,
    ):
        widths = [in_channels] + [out_channels] * (layers - 1)
        self.resnets = nnx.List([ResnetBlock(w, out_channels, **resnet, **leaf) for w in widths])
        self.attentions = nnx.List(
            _spatial_transformers(out_channels, transformers, resnet["groups"], leaf)
        )
        self.recompute = recompute
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
            x = recomputed(resnet, self.recompute)(x, activated_time)
            if self.attentions:
                x = self.attentions[index](x, tokens)
            outputs.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x)
            outputs.append(x)
        return x, outputs


class MidBlock(nnx.Module):
    """resnet, then a (transformer, resnet) for each transformer.

    UNetMidBlock2DCrossAttn has one transformer; UNetMidBlock2D, as a UNet's middle, has none.
    """

    def __init__(
        self,
        channels: int,
        *,
        transformers: Sequence[TransformerSpec],
        resnet: dict,
        recompute: bool = False,
        **leaf,
    ):
        count = len(transformers) + 1
        self.resnets = nnx.List(
            [ResnetBlock(channels, channels, **resnet, **leaf) for _ in range(count)]
        )
        self.attentions = nnx.List(
            _spatial_transformers(channels, transformers, resnet["groups"], leaf)
        )
        self.recompute = recompute

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        activated_time: Float[Array, "B T"],
        tokens: Float[Array, "B L E"],
    ) -> Float[Array, "B H W C"]:
        first, *others = (recomputed(resnet, self.recompute) for resnet in self.resnets)
        x = first(x, activated_time)
        for attention, resnet in zip(self.attentions, others, strict=True):
            x = resnet(attention(x, tokens), activated_time)
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
        transformers: Sequence[TransformerSpec],
        upsample: bool,
        resnet: dict,
        recompute: bool = False,
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
            _spatial_transformers(out_channels, transformers, resnet["groups"], leaf)
        )
        self.recompute = recompute
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
            x = recomputed(_joining(resnet), self.recompute)(x, skip, activated_time)
            if self.attentions:
                x = self.attentions[index](x, tokens)
        for upsampler in self.upsamplers:
            x = upsampler(x, size)
        return x


def _joining(resnet: ResnetBlock) -> Callable:
    """The resnet of x and a skip, whose concatenation a gradient has no need to keep."""
    return lambda x, skip, time: resnet(jnp.concatenate([x, skip], axis=-1), time)


def _spatial_transformers(
    channels: int, specs: Sequence[TransformerSpec], groups: int, leaf: dict
) -> list[SpatialTransformer]:
    return [SpatialTransformer(channels, spec, groups=groups, **leaf) for spec in specs]
