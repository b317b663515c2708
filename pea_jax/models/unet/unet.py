"""The UNet of Stable Diffusion and SDXL: latents, time, text in; prediction, features out."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, Sharding
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from pea_jax.models.blocks import (
    GroupNorm,
    TimestepEmbedding,
    TransformerSpec,
    conv3x3,
    recomputed,
    timestep_embedding,
)
from pea_jax.models.conditioning import Conditioning
from pea_jax.models.gather import gather_at_use
from pea_jax.models.unet.config import TIME_IDS, UNetConfig
from pea_jax.models.unet.levels import DownBlock, MidBlock, UpBlock

REMAT = ("none", "blocks", "full")

__all__ = ["UNet", "UNetConfig"]


class UNet(nnx.Module):
    """Predicts the noise in noisy latents (or the velocity: the checkpoint's schedule says which).

        t           = time_embedding(sinusoids(timestep))
        t          += add_embedding([pooled, sinusoids(time ids)])              SDXL's family alone
        x, skips    = conv_in(latents), [conv_in(latents)]
        x, outputs  = down_i(x, t, tokens);  skips += outputs      i = 0 .. n-1, fine to coarse
        x           = mid(x, t, tokens)
        x           = up_i(x, the last skips, t, tokens)           i = 0 .. n-1, coarse to fine
        prediction  = conv_out(silu(conv_norm_out(x)))

    Source: Rombach et al. 2022 (arXiv 2112.10752) and, for SDXL's family (SDXL, its inpainting and
    Turbo forms, SSD-1B), Podell et al. 2023 (arXiv 2307.01952), in the form of diffusers'
    UNet2DConditionModel.

    Args:
        config: the sizes.
        rngs: the keys of the parameters.
        dtype: of the computation; norms and softmax are in float32 in any case.
        param_dtype: of the parameters.
        attention: the implementation of attention, as `dot_product_attention` names them.
        mesh: of the devices that the batch is split over, which some of them must know.
        remat: what a gradient keeps of the forward pass. Values are the same in any case.
            "none": all that it needs: the least work, the most memory.
            "blocks": the inputs of each resnet and of each transformer layer, which run a second
                time, one by one, in the backward pass.
            "full": the inputs of each down, middle and up block; within a block, which runs a
                second time, it is as with "blocks", so that its parts run a third time.
        gather: where a layer's weights are brought when it runs, and again in the backward pass;
            None leaves them where they are. See `models.gather`.

    Raises:
        ValueError: `remat` is unknown.
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        attention: str = "auto",
        mesh: Mesh | None = None,
        remat: str = "none",
        gather: Sharding | None = None,
    ):
        if remat not in REMAT:
            raise ValueError(f"UNet: remat: expected one of {REMAT}, got {remat!r}")
        self.config = config
        self.dtype = dtype
        self.remat = remat
        leaf = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        channels = config.block_out_channels
        time_width = 4 * channels[0]
        groups, eps = config.norm_num_groups, config.norm_eps
        resnet = {"groups": groups, "eps": eps, "time_width": time_width}
        shared = {"resnet": resnet, "recompute": remat != "none", **leaf}
        spec = partial(
            _transformer, config, implementation=attention, mesh=mesh, recompute=remat != "none"
        )

        self.conv_in = conv3x3(config.in_channels, channels[0], **leaf)
        self.time_embedding = TimestepEmbedding(channels[0], time_width, **leaf)
        if config.addition_embed_type is not None:
            told = config.projection_class_embeddings_input_dim
            self.add_embedding = TimestepEmbedding(told, time_width, **leaf)

        self.down_blocks = nnx.List([])
        width, skip_widths = channels[0], [channels[0]]
        for level in range(len(channels)):
            block = DownBlock(
                width,
                channels[level],
                layers=config.layers_per_block[level],
                transformers=[spec(level, depth) for depth in config.down_depths(level)],
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
            # the middle keeps its self-attention: only_cross_attention is about the levels
            transformers=[
                dataclasses.replace(spec(-1, depth), only_cross_attention=False)
                for depth in config.mid_depths()
            ],
            **{**shared, "resnet": {**resnet, "output_scale": config.mid_block_scale_factor}},
        )

        self.up_blocks = nnx.List([])
        for index in range(len(channels)):
            level = len(channels) - 1 - index
            used = config.layers_per_block[level] + 1
            block = UpBlock(
                width,
                channels[level],
                skip_widths=skip_widths[: -used - 1 : -1],
                transformers=[spec(level, depth) for depth in config.up_depths(index)],
                upsample=level > 0,
                **shared,
            )
            self.up_blocks.append(block)
            width, skip_widths = channels[level], skip_widths[:-used]

        self.conv_norm_out = GroupNorm(width, groups, eps, **leaf)
        self.conv_out = conv3x3(width, config.out_channels, **leaf)
        if gather is not None:
            gather_at_use(self, gather)

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
            conditioning: its tokens [B, L, D] are attended to; its `pooled` [B, P] is added to the
                time embedding in SDXL's family, and None in Stable Diffusion's.
            added: SDXL's time ids, float [B, 6]: (original height, original width, crop top, crop
                left, target height, target width) in pixels, whole numbers that bfloat16 would
                round; None for Stable Diffusion.

        Returns:
            The prediction, [B, H, W, O], and the features by block in the order of computation:
            "down_0" .. (each after its downsampler), "mid", "up_0" .. (each after its upsampler),
            each [B, h, w, c]: nine for Stable Diffusion, seven for SDXL's family, where "mid" is
            there whether or not the middle attends. All in the compute dtype.

        Raises:
            ValueError: an input has another width than the config's, one is missing that this
                family needs, or one is given that it cannot take.
        """
        self._check(latents, conditioning, added)
        x, tokens = latents.astype(self.dtype), conditioning.tokens.astype(self.dtype)
        if self.config.center_input_sample:
            x = 2 * x - 1
        time = jax.nn.silu(self._time(timesteps, conditioning.pooled, added))
        whole = partial(recomputed, on=self.remat == "full")

        features = {}
        x = self.conv_in(x)
        skips = [x]
        for index, block in enumerate(self.down_blocks):
            x, outputs = whole(block)(x, time, tokens)
            skips += outputs
            features[f"down_{index}"] = x
        x = whole(self.mid_block)(x, time, tokens)
        features["mid"] = x
        for index, block in enumerate(self.up_blocks):
            used = [skips.pop() for _ in block.resnets]
            size = skips[-1].shape[1:3] if skips else None
            x = whole(partial(block, size=size))(x, used, time, tokens)
            features[f"up_{index}"] = x
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x))), features

    def _time(
        self, timesteps: Num[Array, "B"], pooled: Array | None, added: Array | None
    ) -> Float[Array, "B T"]:
        """The embedding of the time, and of the pooled text and the time ids, for every resnet."""
        config = self.config
        sinusoids = partial(
            timestep_embedding,
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )
        time = sinusoids(timesteps, config.block_out_channels[0])
        embedding = self.time_embedding(time.astype(self.dtype))
        if config.addition_embed_type is None:
            return embedding
        ids = sinusoids(added.reshape(-1), config.addition_time_embed_dim)
        told = [pooled, ids.reshape(len(added), -1)]
        told = jnp.concatenate([part.astype(self.dtype) for part in told], axis=-1)
        return embedding + self.add_embedding(told)

    def _check(self, latents: Array, conditioning: Conditioning, added: Array | None) -> None:
        config, tokens, pooled = self.config, conditioning.tokens, conditioning.pooled
        problems = []
        if latents.shape[-1] != config.in_channels:
            problems.append(
                f"latents: expected {config.in_channels} channels last, got {latents.shape}"
            )
        if tokens.shape[-1] != config.cross_attention_dim:
            problems.append(
                f"tokens: expected width {config.cross_attention_dim}, got {tokens.shape}"
            )
        widths = {
            "pooled": (pooled, config.pooled_width),
            "added": (added, None if config.addition_embed_type is None else TIME_IDS),
        }
        for name, (value, width) in widths.items():
            got = None if value is None else value.shape
            if width is None and got is not None:
                problems.append(f"{name}: expected None for this config, got {got}")
            elif width is not None and (got is None or got[-1] != width):
                problems.append(f"{name}: expected width {width}, got {got}")
        if problems:
            raise ValueError("UNet: " + "; ".join(problems))


def _transformer(
    config: UNetConfig,
    level: int,
    depth: int,
    *,
    implementation: str,
    mesh: Mesh | None,
    recompute: bool,
) -> TransformerSpec:
    return TransformerSpec(
        heads=config.attention_heads[level],
        layers=depth,
        cross_attention_dim=config.cross_attention_dim,
        linear_projection=config.use_linear_projection,
        only_cross_attention=config.only_cross_attention[level],
        implementation=implementation,
        mesh=mesh,
        recompute=recompute,
    )
