"""The UNet of Stable Diffusion 1.x and 2.x: latents, time, text in; prediction, features out."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from pea_jax.models.blocks import (
    GroupNorm,
    TimestepEmbedding,
    TransformerSpec,
    conv3x3,
    timestep_embedding,
)
from pea_jax.models.conditioning import Conditioning
from pea_jax.models.unet_blocks import DownBlock, MidBlock, UpBlock
from pea_jax.models.unet_config import UNetConfig

__all__ = ["UNet", "UNetConfig"]


class UNet(nnx.Module):
    """Predicts the noise in noisy latents (or the velocity: the checkpoint's schedule says which).

        t           = time_embedding(sinusoids(timestep))
        x, skips    = conv_in(latents), [conv_in(latents)]
        x, outputs  = down_i(x, t, tokens);  skips += outputs      i = 0 .. n-1, fine to coarse
        x           = mid(x, t, tokens)
        x           = up_i(x, the last skips, t, tokens)           i = 0 .. n-1, coarse to fine
        prediction  = conv_out(silu(conv_norm_out(x)))

    Source: Rombach et al. 2022 (arXiv 2112.10752), in the form of diffusers' UNet2DConditionModel.

    Args:
        config: the sizes.
        rngs: the keys of the parameters.
        dtype: of the computation; norms and softmax are in float32 in any case.
        param_dtype: of the parameters.
        attention: the implementation of attention, as `dot_product_attention` names them.
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        attention: str = "xla",
    ):
        self.config = config
        self.dtype = dtype
        leaf = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        channels = config.block_out_channels
        time_width = 4 * channels[0]
        groups, eps = config.norm_num_groups, config.norm_eps
        resnet = {"groups": groups, "eps": eps, "time_width": time_width}
        shared = {"resnet": resnet, **leaf}
        specs = [_transformer(config, level, attention) for level in range(len(channels))]

        self.conv_in = conv3x3(config.in_channels, channels[0], **leaf)
        self.time_embedding = TimestepEmbedding(channels[0], time_width, **leaf)

        self.down_blocks = nnx.List([])
        width, skip_widths = channels[0], [channels[0]]
        for level, block_type in enumerate(config.down_block_types):
            block = DownBlock(
                width,
                channels[level],
                layers=config.layers_per_block[level],
                transformer=specs[level] if block_type == "CrossAttnDownBlock2D" else None,
                downsample_padding=(
                    config.downsample_padding if level + 1 < len(channels) else None
                ),
                **shared,
            )
            self.down_blocks.append(block)
            width = channels[level]
            skip_widths += [width] * (len(block.resnets) + len(block.downsamplers))

        self.mid_block = MidBlock(
            width,
            layers=1,
            # the middle keeps its self-attention: only_cross_attention is about the levels
            transformer=dataclasses.replace(specs[-1], only_cross_attention=False),
            **{**shared, "resnet": {**resnet, "output_scale": config.mid_block_scale_factor}},
        )

        self.up_blocks = nnx.List([])
        for index, block_type in enumerate(config.up_block_types):
            level = len(channels) - 1 - index
            used = config.layers_per_block[level] + 1
            block = UpBlock(
                width,
                channels[level],
                skip_widths=skip_widths[: -used - 1 : -1],
                transformer=specs[level] if block_type == "CrossAttnUpBlock2D" else None,
                upsample=level > 0,
                **shared,
            )
            self.up_blocks.append(block)
            width, skip_widths = channels[level], skip_widths[:-used]

        self.conv_norm_out = GroupNorm(width, groups, eps, **leaf)
        self.conv_out = conv3x3(width, config.out_channels, **leaf)

    def __call__(
        self,
        latents: Float[Array, "B H W C"],
        timesteps: Num[Array, "B"],
        conditioning: Conditioning,
        added: Float[Array, "B _"] | None = None,
    ) -> tuple[Float[Array, "B H W O"], dict[str, Float[Array, "B _ _ _"]]]:
        """Runs the network.

        Args:
            latents: noisy latents, [B, H, W, C]; any H and W.
            timesteps: of the noise schedule, [B]; may lie between two steps.
            conditioning: its tokens [B, L, D] are attended to; this family has no use for `pooled`.
            added: what some families add to the time embedding; None for this one.

        Returns:
            The prediction, [B, H, W, O], and the features by block in the order of computation:
            "down_0" .. (each after its downsampler), "mid", "up_0" .. (each after its upsampler),
            each [B, h, w, c]. All in the compute dtype.

        Raises:
            ValueError: the latents or the tokens have another width than the config's, or
                something was given that this family cannot take.
        """
        tokens = conditioning.tokens
        self._check(latents, tokens, added)
        x, tokens = latents.astype(self.dtype), tokens.astype(self.dtype)
        if self.config.center_input_sample:
            x = 2 * x - 1
        time = jax.nn.silu(self._time(timesteps))

        features = {}
        x = self.conv_in(x)
        skips = [x]
        for index, block in enumerate(self.down_blocks):
            x, outputs = block(x, time, tokens)
            skips += outputs
            features[f"down_{index}"] = x
        x = self.mid_block(x, time, tokens)
        features["mid"] = x
        for index, block in enumerate(self.up_blocks):
            used = [skips.pop() for _ in block.resnets]
            x = block(x, used, time, tokens, skips[-1].shape[1:3] if skips else None)
            features[f"up_{index}"] = x
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x))), features

    def _time(self, timesteps: Num[Array, "B"]) -> Float[Array, "B T"]:
        """The embedding of the time that every resnet is told."""
        sinusoids = timestep_embedding(
            timesteps,
            self.config.block_out_channels[0],
            flip_sin_to_cos=self.config.flip_sin_to_cos,
            freq_shift=self.config.freq_shift,
        )
        return self.time_embedding(sinusoids.astype(self.dtype))

    def _check(self, latents: Array, tokens: Array, added: Array | None) -> None:
        width, problems = self.config.cross_attention_dim, []
        if latents.shape[-1] != self.config.in_channels:
            problems.append(
                f"latents: expected {self.config.in_channels} channels last, got {latents.shape}"
            )
        if tokens.shape[-1] != width:
            problems.append(f"tokens: expected width {width}, got {tokens.shape}")
        if added is not None:
            problems.append(f"added: expected None for this config, got {added.shape}")
        if problems:
            raise ValueError("UNet: " + "; ".join(problems))


def _transformer(config: UNetConfig, level: int, implementation: str) -> TransformerSpec:
    return TransformerSpec(
        heads=config.attention_heads[level],
        layers=config.transformer_layers_per_block[level],
        cross_attention_dim=config.cross_attention_dim,
        linear_projection=config.use_linear_projection,
        only_cross_attention=config.only_cross_attention[level],
        implementation=implementation,
    )
