"""The UNet of Stable Diffusion and SDXL: latents, time, text in; prediction, features out."""

from collections.abc import Callable, Sequence
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
    """Predicts the noise in noisy latents, or the velocity, as the checkpoint's schedule requires.

        t           = time_embedding(sinusoids(timestep))
        t          += add_embedding([pooled, sinusoids(time ids)])              only SDXL's family
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
        rngs: random keys for the parameters.
        dtype: compute type; norms and softmax are always in float32.
        param_dtype: type of the parameters.
        attention: the `implementation` of `dot_product_attention`.
        mesh: devices that the batch is split over; some implementations of attention need it.
        remat: what the gradient stores of the forward pass. It never changes values.
            "none": everything it needs: least work, most memory.
            "blocks": the inputs of each resnet and each transformer layer. The backward pass runs
                them a second time, one after another.
            "full": the inputs of each down, middle and up block. The backward pass runs a block a
                second time, as with "blocks", and therefore its parts a third time.
        gather: sharding that a layer's weights get while it runs, forward and backward; None
            leaves them as they are. See `models.gather`.

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
        channels, recompute = config.block_out_channels, remat != "none"
        time_width = 4 * channels[0]
        groups, eps = config.norm_num_groups, config.norm_eps
        resnet = {"groups": groups, "eps": eps, "time_width": time_width}
        shared = {"resnet": resnet, "recompute": recompute, "leaf": leaf}
        transformers = partial(
            _transformers, config, implementation=attention, mesh=mesh, recompute=recompute
        )

        self.conv_in = conv3x3(config.in_channels, channels[0], **leaf)
        self.time_embedding = TimestepEmbedding(channels[0], time_width, **leaf)
        if config.addition_embed_type is not None:
            added_width = config.projection_class_embeddings_input_dim
            self.add_embedding = TimestepEmbedding(added_width, time_width, **leaf)

        self.down_blocks = nnx.List(_down_blocks(config, transformers, **shared))
        self.mid_block = MidBlock(
            channels[-1],
            # the middle keeps its self-attention: only_cross_attention applies to the levels
            transformers=transformers(-1, config.mid_depths(), only_cross_attention=False),
            **{**shared, "resnet": {**resnet, "output_scale": config.mid_block_scale_factor}},
        )
        self.up_blocks = nnx.List(_up_blocks(config, transformers, **shared))
        self.conv_norm_out = GroupNorm(channels[0], groups, eps, **leaf)
        self.conv_out = conv3x3(channels[0], config.out_channels, **leaf)
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
            timesteps: timesteps of the noise schedule, [B]; fractions are allowed.
            conditioning: tokens [B, L, D] for cross-attention. `pooled` [B, P] is added to the time
                embedding in SDXL's family, and is None in Stable Diffusion's.
            added: SDXL's time ids, float [B, 6]: (original height, original width, crop top, crop
                left, target height, target width) in pixels, in float32 because bfloat16 would
                round them; None for Stable Diffusion.

        Returns:
            The prediction, [B, H, W, O], and the features by block in the order of computation:
            "down_0" .. (each after its downsampler), "mid", "up_0" .. (each after its upsampler),
            each [B, h, w, c]: nine for Stable Diffusion, seven for SDXL's family. "mid" is always
            there, with or without attention. All have the compute type.

        Raises:
            ValueError: the width of an input differs from the config's, or an input is missing or
                not supported by this family.
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
        """The embedding of time, pooled text and time ids that every resnet gets."""
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
        parts = pooled.astype(self.dtype), ids.reshape(len(added), -1).astype(self.dtype)
        return embedding + self.add_embedding(jnp.concatenate(parts, axis=-1))

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


def _transformers(
    config: UNetConfig, level: int, depths: Sequence[int], **options
) -> list[TransformerSpec]:
    """A spec for each entry of `depths`; `options` are further fields of all of them."""
    shared = {
        "heads": config.attention_heads[level],
        "cross_attention_dim": config.cross_attention_dim,
        "linear_projection": config.use_linear_projection,
        "only_cross_attention": config.only_cross_attention[level],
    }
    return [TransformerSpec(layers=depth, **shared | options) for depth in depths]


def _down_blocks(config: UNetConfig, transformers: Callable, **shared) -> list[DownBlock]:
    """The blocks of the down path; all but the last one halve the resolution."""
    channels = config.block_out_channels
    return [
        DownBlock(
            channels[max(level - 1, 0)],
            width,
            layers=config.layers_per_block[level],
            transformers=transformers(level, config.down_depths(level)),
            downsample_padding=config.downsample_padding if level + 1 < len(channels) else None,
            **shared,
        )
        for level, width in enumerate(channels)
    ]


def _up_blocks(config: UNetConfig, transformers: Callable, **shared) -> list[UpBlock]:
    """The blocks of the up path, from coarse to fine; each uses one skip per resnet."""
    channels = config.block_out_channels
    skips = [channels[0]]  # widths of the outputs of conv_in and of the down path
    for level, layers in enumerate(config.layers_per_block):
        skips += [channels[level]] * (layers + (level + 1 < len(channels)))
    blocks, width = [], channels[-1]
    for index, level in enumerate(reversed(range(len(channels)))):
        block = UpBlock(
            width,
            channels[level],
            skip_widths=[skips.pop() for _ in range(config.layers_per_block[level] + 1)],
            transformers=transformers(level, config.up_depths(index)),
            upsample=level > 0,
            **shared,
        )
        blocks.append(block)
        width = channels[level]
    return blocks
