"""The blocks of a UNet's down path, middle and up path: resnets with transformers.

Attribute names are those of the diffusers checkpoints. `transformers` has a spec for each spatial
transformer; without specs a block has only resnets. `resnet` holds the keywords that all resnets of
a network share (groups, eps, time_width, output_scale), and `leaf` those of every layer with
parameters. With `recompute`, the gradient stores only the inputs of each resnet, as
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


class _Block(nnx.Module):
    """The layers of every block: a resnet for each entry of `in_widths`, and the transformers."""

    def __init__(
        self,
        in_widths: Sequence[int],
        out_channels: int,
        *,
        transformers: Sequence[TransformerSpec],
        resnet: dict,
        recompute: bool,
        leaf: dict,
    ):
        groups = resnet["groups"]
        self.resnets = nnx.List([ResnetBlock(w, out_channels, **resnet, **leaf) for w in in_widths])
        self.attentions = nnx.List(
            [SpatialTransformer(out_channels, s, groups=groups, **leaf) for s in transformers]
        )
        self.recompute = recompute


class DownBlock(_Block):
    """(resnet, transformer) x layers, then a downsampler: DownBlock2D and CrossAttnDownBlock2D."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        layers: int,
        downsample_padding: int | None,
        leaf: dict,
        **options,
    ):
        in_widths = [in_channels] + [out_channels] * (layers - 1)
        super().__init__(in_widths, out_channels, leaf=leaf, **options)
        self.downsamplers = nnx.List([])
        if downsample_padding is not None:
            self.downsamplers.append(Downsample(out_channels, padding=downsample_padding, **leaf))

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        activated_time: Float[Array, "B T"],
        tokens: Float[Array, "B L E"],
    ) -> tuple[Float[Array, "B h w O"], list[Float[Array, "B _ _ O"]]]:
        """Returns the block's output, and all inner outputs in order, for the up path."""
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


class MidBlock(_Block):
    """resnet, then a (transformer, resnet) for each transformer.

    UNetMidBlock2DCrossAttn has one transformer; the UNetMidBlock2D of a UNet has none.
    """

    def __init__(self, channels: int, *, transformers: Sequence[TransformerSpec], **options):
        in_widths = [channels] * (len(transformers) + 1)
        super().__init__(in_widths, channels, transformers=transformers, **options)

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


class UpBlock(_Block):
    """(concatenate a skip, resnet, transformer) x layers, then an upsampler: [CrossAttn]UpBlock2D.

    `skip_widths` are the channels of the skips in order of use, which starts with the last output
    of the down path.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        skip_widths: Sequence[int],
        upsample: bool,
        leaf: dict,
        **options,
    ):
        widths = [in_channels] + [out_channels] * (len(skip_widths) - 1)
        in_widths = [sum(pair) for pair in zip(widths, skip_widths, strict=True)]
        super().__init__(in_widths, out_channels, leaf=leaf, **options)
        self.upsamplers = nnx.List([Upsample(out_channels, **leaf)] if upsample else [])

    def __call__(
        self,
        x: Float[Array, "B h w C"],
        skips: Sequence[Float[Array, "B h w _"]],
        activated_time: Float[Array, "B T"],
        tokens: Float[Array, "B L E"],
        size: tuple[int, int] | None,
    ) -> Float[Array, "B H W O"]:
        """`size` is the height and width of the next block's skips, which may be odd."""
        for index, (resnet, skip) in enumerate(zip(self.resnets, skips, strict=True)):
            x = recomputed(_joining(resnet), self.recompute)(x, skip, activated_time)
            if self.attentions:
                x = self.attentions[index](x, tokens)
        for upsampler in self.upsamplers:
            x = upsampler(x, size)
        return x


def _joining(resnet: ResnetBlock) -> Callable:
    """The resnet of x and a skip, so that the gradient need not store their concatenation."""
    return lambda x, skip, time: resnet(jnp.concatenate([x, skip], axis=-1), time)
