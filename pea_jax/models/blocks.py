"""Layers that several networks share: norms, resnet, spatial transformer, resampling, time.

Attribute names are those of the diffusers checkpoints. `leaf` stands for the keywords that every
parameterised layer takes: rngs, dtype (of the computation) and param_dtype.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from pea_jax.models.attention import core, splash
from pea_jax.runtime import parallel

LAYER_NORM_EPS = 1e-5
TRANSFORMER_GROUP_NORM_EPS = 1e-6  # the spatial transformer's own, whatever the config's norm_eps


def timestep_embedding(
    timesteps: Num[Array, "B"], width: int, *, flip_sin_to_cos: bool, freq_shift: float
) -> Float[Array, "B width"]:
    """Sinusoids of the timestep, in float32.

        w_k = 10000^(-k / (width/2 - freq_shift)),  k = 0 .. width/2 - 1
        [sin(t w), cos(t w)],  or [cos(t w), sin(t w)] where flip_sin_to_cos

    Source: Ho et al. 2020 (arXiv 2006.11239), section B; the order and the shift are the
    checkpoint's. `width` is even.
    """
    half = width // 2
    exponents = jnp.arange(half, dtype=jnp.float32) / (half - freq_shift)
    frequencies = jnp.exp(-math.log(10000.0) * exponents)
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies[None, :]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate([cos, sin] if flip_sin_to_cos else [sin, cos], axis=-1)


def resize_nearest(
    x: Float[Array, "B H W C"], size: tuple[int, int]
) -> Float[Array, "B height width C"]:
    """y[i, j] = x[floor(i H / height), floor(j W / width)], as PyTorch's "nearest"."""
    batch, height, width, channels = x.shape
    if size == (2 * height, 2 * width):  # a broadcast, which fuses into the convolution's input
        x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
        return x.reshape(batch, *size, channels)
    rows = np.arange(size[0]) * height // size[0]
    columns = np.arange(size[1]) * width // size[1]
    return x[:, rows][:, :, columns]


def recomputed(module: Callable, on: bool = True) -> Callable:
    """`module`, with a gradient that stores only the inputs and runs the module a second time.

    With `on` False, `module` itself. Values and gradients are the same either way.
    """
    # A new function for every call: a module may close over values of an outer trace.
    return jax.checkpoint(lambda *arguments: module(*arguments)) if on else module


class GroupNorm(nnx.Module):
    """(x - mean) / sqrt(var + eps) * scale + bias, with the mean and variance of each group.

    Wu and He 2018 (arXiv 1803.08494), in float32. The variance is taken about the mean, because
    E[x^2] - E[x]^2 cancels where a group's mean is large. Means are taken over each channel first
    and then over a group's channels. nnx.GroupNorm reduces an axis of C/groups entries, which is
    shorter than any vector unit; on CPUs this is 3 to 15 times faster.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        eps: float,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
    ):
        del rngs  # no parameter is random
        self.scale = nnx.Param(jnp.ones(channels, param_dtype))
        self.bias = nnx.Param(jnp.zeros(channels, param_dtype))
        self.groups, self.eps, self.dtype = groups, eps, dtype

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        x = x.astype(jnp.float32)
        centred = x - self._group_mean(jnp.mean(x, (1, 2)))
        variance = self._group_mean(jnp.mean(jnp.square(centred), (1, 2)))
        scale, bias = (
            p[...].astype(jnp.float32)[None, None, None] for p in (self.scale, self.bias)
        )
        return (centred * (jax.lax.rsqrt(variance + self.eps) * scale) + bias).astype(self.dtype)

    def _group_mean(self, channels: Float[Array, "B C"]) -> Float[Array, "B 1 1 C"]:
        """The mean over the channels of each group, repeated for each channel."""
        groups = channels.reshape(len(channels), self.groups, -1)
        mean = jnp.broadcast_to(jnp.mean(groups, -1, keepdims=True), groups.shape)
        return mean.reshape(len(channels), 1, 1, -1)


def conv3x3(in_channels: int, out_channels: int, **leaf) -> nnx.Conv:
    """A 3x3 convolution that keeps the size."""
    return nnx.Conv(in_channels, out_channels, (3, 3), padding=((1, 1), (1, 1)), **leaf)


def layer_norm(width: int, eps: float, **leaf) -> nnx.LayerNorm:
    """A layer norm whose variance is computed about the mean, in float32."""
    return nnx.LayerNorm(width, epsilon=eps, use_fast_variance=False, **leaf)


class TimestepEmbedding(nnx.Module):
    """linear_2(silu(linear_1(x)))."""

    def __init__(self, in_width: int, width: int, **leaf):
        self.linear_1 = nnx.Linear(in_width, width, **leaf)
        self.linear_2 = nnx.Linear(width, width, **leaf)

    def __call__(self, x: Float[Array, "B I"]) -> Float[Array, "B T"]:
        return self.linear_2(jax.nn.silu(self.linear_1(x)))


class ResnetBlock(nnx.Module):
    """A residual block, conditioned on the time where the network has one.

        h = conv1(silu(norm1(x))) + time_emb_proj(silu(t))
        y = (shortcut(x) + conv2(silu(norm2(h)))) / output_scale

    The shortcut is a 1x1 convolution where the width changes, else the identity. silu(t) is the
    same for every block, so the caller computes it once.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        eps: float,
        time_width: int | None = None,
        output_scale: float = 1.0,
        **leaf,
    ):
        self.norm1 = GroupNorm(in_channels, groups, eps, **leaf)
        self.conv1 = conv3x3(in_channels, out_channels, **leaf)
        if time_width is not None:
            self.time_emb_proj = nnx.Linear(time_width, out_channels, **leaf)
        self.norm2 = GroupNorm(out_channels, groups, eps, **leaf)
        self.conv2 = conv3x3(out_channels, out_channels, **leaf)
        self.has_shortcut = in_channels != out_channels
        if self.has_shortcut:
            self.conv_shortcut = nnx.Conv(in_channels, out_channels, (1, 1), **leaf)
        self.output_scale = output_scale

    def __call__(
        self, x: Float[Array, "B H W C"], activated_time: Float[Array, "B T"] | None = None
    ) -> Float[Array, "B H W O"]:
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        if activated_time is not None:
            h = h + self.time_emb_proj(activated_time)[:, None, None, :]
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        if self.has_shortcut:
            x = self.conv_shortcut(x)
        y = x + h
        return y if self.output_scale == 1.0 else y / self.output_scale


class Downsample(nnx.Module):
    """A 3x3 convolution of stride 2; H becomes ceil(H/2) (padding 1) or floor(H/2) (padding 0).

    Padding 1 is (1, 1) on both axes; padding 0 is (0, 1), below and to the right only.
    """

    def __init__(self, channels: int, *, padding: int, **leaf):
        pad = (padding, 1)
        self.conv = nnx.Conv(channels, channels, (3, 3), strides=2, padding=(pad, pad), **leaf)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        return self.conv(x)


class Upsample(nnx.Module):
    """Nearest-neighbour resizing to `size` (default: twice the input's), then a 3x3 convolution."""

    def __init__(self, channels: int, **leaf):
        self.conv = conv3x3(channels, channels, **leaf)

    def __call__(
        self, x: Float[Array, "B h w C"], size: tuple[int, int] | None = None
    ) -> Float[Array, "B H W C"]:
        return self.conv(resize_nearest(x, size or (2 * x.shape[1], 2 * x.shape[2])))


class Attention(nnx.Module):
    """to_out(attention(to_q(x), to_k(context), to_v(context))) over `heads` heads of the width."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        context_width: int,
        implementation: str = "auto",
        mesh: Mesh | None = None,
        **leaf,
    ):
        self.to_q = nnx.Linear(width, width, use_bias=False, **leaf)
        self.to_k = nnx.Linear(context_width, width, use_bias=False, **leaf)
        self.to_v = nnx.Linear(context_width, width, use_bias=False, **leaf)
        self.to_out = nnx.List([nnx.Linear(width, width, **leaf)])
        self.heads = heads
        self.implementation, self.mesh = implementation, mesh

    def __call__(
        self, x: Float[Array, "B Q D"], context: Float[Array, "B L E"]
    ) -> Float[Array, "B Q D"]:
        attend = functools.partial(
            core.multi_head_attention,
            heads=self.heads,
            implementation=self.implementation,
            mesh=self.mesh,
        )
        if parallel.platform(self.mesh) == "tpu":
            # The gradient stores query, key and value before they are split into heads, and the
            # result of splash; it recomputes the rest. Split into heads, rows of 64 would take the
            # space of 128 in a TPU's memory, and the float32 probabilities of cross-attention
            # would take most of the space.
            attend = jax.checkpoint(
                attend, policy=jax.checkpoint_policies.save_only_these_names(splash.RESULT)
            )
        return self.to_out[0](attend(self.to_q(x), self.to_k(context), self.to_v(context)))


class GEGLU(nnx.Module):
    """[a, b] = proj(x);  a * gelu(b), with the exact (erf) GELU. Source: arXiv 2002.05202."""

    def __init__(self, width: int, inner_width: int, **leaf):
        self.proj = nnx.Linear(width, 2 * inner_width, **leaf)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L I"]:
        value, gate = jnp.split(self.proj(x), 2, axis=-1)
        return value * jax.nn.gelu(gate, approximate=False)


class FeedForward(nnx.Module):
    """net.2(net.0(x)): GEGLU to four times the width, and back; net.1, a dropout, is empty."""

    def __init__(self, width: int, **leaf):
        inner = 4 * width
        self.net = nnx.List(
            [GEGLU(width, inner, **leaf), nnx.Dict(), nnx.Linear(inner, width, **leaf)]
        )

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return self.net[2](self.net[0](x))


@dataclasses.dataclass(frozen=True)
class TransformerSpec:
    """The sizes and options of a spatial transformer."""

    heads: int
    layers: int
    cross_attention_dim: int
    linear_projection: bool
    only_cross_attention: bool = False
    implementation: str = "auto"
    mesh: Mesh | None = None  # devices that the batch is split over
    recompute: bool = False  # the gradient recomputes each TransformerBlock separately


class TransformerBlock(nnx.Module):
    """x += attn1(norm1 x);  x += attn2(norm2 x, tokens);  x += ff(norm3 x).

    attn1 attends to x; with only_cross_attention it attends to the tokens, as attn2 does.
    """

    def __init__(self, width: int, spec: TransformerSpec, **leaf):
        options = dict(heads=spec.heads, implementation=spec.implementation, mesh=spec.mesh, **leaf)
        self.only_cross_attention = spec.only_cross_attention
        own_width = spec.cross_attention_dim if spec.only_cross_attention else width
        self.norm1, self.norm2, self.norm3 = (
            layer_norm(width, LAYER_NORM_EPS, **leaf) for _ in range(3)
        )
        self.attn1 = Attention(width, context_width=own_width, **options)
        self.attn2 = Attention(width, context_width=spec.cross_attention_dim, **options)
        self.ff = FeedForward(width, **leaf)

    def __call__(
        self, x: Float[Array, "B Q D"], tokens: Float[Array, "B L E"]
    ) -> Float[Array, "B Q D"]:
        h = self.norm1(x)
        x = x + self.attn1(h, tokens if self.only_cross_attention else h)
        x = x + self.attn2(self.norm2(x), tokens)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nnx.Module):
    """x + proj_out(blocks(proj_in(norm(x)), tokens)), with the pixels as the sequence.

    The projections are 1x1 convolutions (SD 1.x) or the equivalent Linear (SD 2.x), which differ
    only in the shapes of the checkpoint.
    """

    def __init__(self, channels: int, spec: TransformerSpec, *, groups: int, **leaf):
        self.norm = GroupNorm(channels, groups, TRANSFORMER_GROUP_NORM_EPS, **leaf)
        project = nnx.Linear
        if not spec.linear_projection:
            project = functools.partial(nnx.Conv, kernel_size=(1, 1))
        self.proj_in = project(channels, channels, **leaf)
        self.proj_out = project(channels, channels, **leaf)
        self.transformer_blocks = nnx.List(
            [TransformerBlock(channels, spec, **leaf) for _ in range(spec.layers)]
        )
        self.recompute = spec.recompute

    def __call__(
        self, x: Float[Array, "B H W C"], tokens: Float[Array, "B L E"]
    ) -> Float[Array, "B H W C"]:
        batch, height, width, channels = x.shape
        h = self.proj_in(self.norm(x)).reshape(batch, height * width, channels)
        for block in self.transformer_blocks:
            h = recomputed(block, self.recompute)(h, tokens)
        return x + self.proj_out(h.reshape(x.shape))
