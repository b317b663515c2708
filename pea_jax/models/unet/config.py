"""The sizes of a UNet, read from a checkpoint's config.json and checked."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pea_jax.runtime.config_fields import (
    COUNT,
    FLAG,
    NUMBER,
    Config,
    field,
    one_of,
    optional,
    per_level,
    require,
)

#: Fields of the file that Stable Diffusion and SDXL have with these values alone.
_ONLY = {
    "act_fn": one_of("silu", "swish"),  # two names of one function
    "addition_embed_type_num_heads": one_of(64),  # of the type "text", which is not supported
    "attention_type": one_of("default"),
    "class_embed_type": one_of(None),
    "class_embeddings_concat": one_of(False),
    "conv_in_kernel": one_of(3),
    "conv_out_kernel": one_of(3),
    "cross_attention_norm": one_of(None),
    "dropout": one_of(0.0, 0),
    "dual_cross_attention": one_of(False),
    "encoder_hid_dim": one_of(None),
    "encoder_hid_dim_type": one_of(None),
    "mid_block_only_cross_attention": one_of(None),
    "num_attention_heads": one_of(None),
    "num_class_embeds": one_of(None),
    "resnet_out_scale_factor": one_of(1.0, 1),
    "resnet_skip_time_act": one_of(False),
    "resnet_time_scale_shift": one_of("default"),
    "time_cond_proj_dim": one_of(None),
    "time_embedding_act_fn": one_of(None),
    "time_embedding_dim": one_of(None),
    "time_embedding_type": one_of("positional"),
    "timestep_post_act": one_of(None),
    # our attention computes its softmax in float32 in any case
    "upcast_attention": one_of(None, False, True),
}

#: State of the weights' moving average (SDXL inpainting has it in its config.json).
_AVERAGING = (
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
)

#: Values that every text_time model was trained with: (original H, W, top, left, target H, W).
TIME_IDS = 6

#: Fields for which the file may have one value for all levels.
_SPREAD = (
    "layers_per_block",
    "transformer_layers_per_block",
    "attention_head_dim",
    "only_cross_attention",
)

_DEPTHS = per_level(
    require(
        "a positive integer, or a list of them",
        lambda value: value != () and not any(map(COUNT, _each(value, 1))),
    )
)


@dataclasses.dataclass(frozen=True)
class UNetConfig(Config, label="UNet config", only=_ONLY, ignored=("_*", *_AVERAGING)):
    """The sizes of a UNet; the defaults are those of diffusers' UNet2DConditionModel.

    Tuples have one entry per level, from the finest resolution to the coarsest. Only
    `up_block_types` and `reverse_transformer_layers_per_block` run from the coarsest to the finest,
    as in the checkpoints. An entry of the transformer layers is one number for all spatial
    transformers of its level, or a tuple with a number for each (SSD-1B); the way up has a list of
    its own where it is pruned differently.

    Raises:
        ValueError: names every value that is not supported or does not fit the others.
    """

    sample_size: int | tuple[int, ...] | None = None  # side of the latents in training
    in_channels: int = field(COUNT, 4)
    out_channels: int = field(COUNT, 4)
    center_input_sample: bool = field(FLAG, False)
    flip_sin_to_cos: bool = field(FLAG, True)
    freq_shift: float = field(NUMBER, 0)
    down_block_types: tuple[str, ...] = field(
        per_level(one_of("DownBlock2D", "CrossAttnDownBlock2D")),
        ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    )
    up_block_types: tuple[str, ...] = field(
        per_level(one_of("UpBlock2D", "CrossAttnUpBlock2D")),
        ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    only_cross_attention: tuple[bool, ...] = field(per_level(FLAG), (False,) * 4)
    block_out_channels: tuple[int, ...] = field(
        per_level(COUNT), (320, 640, 1280, 1280), multiple_of="norm_num_groups"
    )
    layers_per_block: tuple[int, ...] = field(per_level(COUNT), (2,) * 4)
    downsample_padding: int = field(one_of(0, 1), 1)
    mid_block_type: str = field(  # UNetMidBlock2D is a single resnet
        one_of("UNetMidBlock2D", "UNetMidBlock2DCrossAttn"), "UNetMidBlock2DCrossAttn"
    )
    mid_block_scale_factor: float = field(NUMBER, 1)
    norm_num_groups: int = field(COUNT, 32)
    norm_eps: float = field(NUMBER, 1e-5)
    cross_attention_dim: int = field(COUNT, 1280)
    transformer_layers_per_block: tuple[int | tuple[int, ...], ...] = field(_DEPTHS, (1,) * 4)
    reverse_transformer_layers_per_block: tuple[int | tuple[int, ...], ...] | None = field(
        optional(_DEPTHS), None
    )
    # The name in the file is an old mistake of diffusers: it holds the number of heads.
    attention_heads: tuple[int, ...] = field(per_level(COUNT), (8,) * 4, key="attention_head_dim")
    use_linear_projection: bool = field(FLAG, False)
    # "text_time": the pooled text and the time ids are added to the time embedding.
    addition_embed_type: str | None = field(optional(one_of("text_time")), None)
    addition_time_embed_dim: int | None = field(optional(COUNT), None)  # sinusoids of one time id
    # width of the pooled text and of all time ids together
    projection_class_embeddings_input_dim: int | None = field(optional(COUNT), None)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "UNetConfig":
        """The config in a checkpoint's unet/config.json."""
        widths = values.get("block_out_channels", cls.block_out_channels)
        levels = len(widths) if isinstance(widths, list | tuple) else 1
        spread = {}
        for key in _SPREAD:
            value = values.get(key, cls.fields()[key].default[0])
            spread[key] = value if isinstance(value, list | tuple) else [value] * levels
        return super().from_dict({**values, **spread})

    def misfits(self) -> list[str]:
        """Lists of unequal length, and sizes that are missing or do not divide each other."""
        channels = self.block_out_channels
        lists = {
            key: value
            for key, info in self.fields().items()
            if key != "sample_size" and isinstance(value := getattr(self, info.name), tuple)
        }
        problems = super().misfits()
        unequal = [
            f"{key}: expected {len(channels)} entries, as block_out_channels has, got {value!r}"
            for key, value in lists.items()
            if len(value) != len(channels)
        ]
        problems += unequal or self._misfit_depths()
        if channels[0] % 2:
            problems.append(f"block_out_channels: expected an even first entry, got {channels}")
        if any(width % heads for width, heads in zip(channels, self.attention_heads, strict=False)):
            problems.append(
                f"attention_head_dim (the number of heads): expected divisors of block_out_channels"
                f" {channels}, got {self.attention_heads}"
            )
        return problems + self._misfit_addition()

    @property
    def pooled_width(self) -> int | None:
        """Width of the pooled text vector that the UNet takes; None where it takes none."""
        if self.addition_embed_type is None:
            return None
        return self.projection_class_embeddings_input_dim - TIME_IDS * self.addition_time_embed_dim

    def down_depths(self, level: int) -> tuple[int, ...]:
        """Layers of each spatial transformer of a level on the way down; () if it has none."""
        if self.down_block_types[level] == "DownBlock2D":
            return ()
        return _each(self.transformer_layers_per_block[level], self.layers_per_block[level])

    def mid_depths(self) -> tuple[int, ...]:
        """The same for the middle: as deep as the first transformer of the coarsest level."""
        if self.mid_block_type == "UNetMidBlock2D":
            return ()
        return _each(self.transformer_layers_per_block[-1], 1)[:1]

    def up_depths(self, index: int) -> tuple[int, ...]:
        """The same for the way up; index 0 is the coarsest level."""
        if self.up_block_types[index] == "UpBlock2D":
            return ()
        entries = self.reverse_transformer_layers_per_block
        if entries is None:
            entries = self.transformer_layers_per_block[::-1]
        return _each(entries[index], self.layers_per_block[::-1][index] + 1)

    def _misfit_depths(self) -> list[str]:
        """Lists of transformer layers whose length is not the number of transformers."""
        name, entries = "transformer_layers_per_block", self.transformer_layers_per_block
        reverse = self.reverse_transformer_layers_per_block
        if reverse is None and any(isinstance(entry, tuple) for entry in entries):
            return [f"reverse_{name}: expected a list, as {name} holds {entries}, got None"]
        problems = []
        for index, layers in enumerate(self.layers_per_block):
            if len(depths := self.down_depths(index)) not in (0, layers):
                problems.append(f"{name}[{index}]: expected {layers} numbers, got {depths}")
            layers = self.layers_per_block[::-1][index] + 1
            if len(depths := self.up_depths(index)) not in (0, layers):
                problems.append(f"reverse_{name}[{index}]: expected {layers} numbers, got {depths}")
        return problems

    def _misfit_addition(self) -> list[str]:
        """Widths of the added embedding that are missing, not used, or do not fit."""
        kind = self.addition_embed_type
        width, total = self.addition_time_embed_dim, self.projection_class_embeddings_input_dim
        sizes = {
            "addition_time_embed_dim": width,
            "projection_class_embeddings_input_dim": total,
        }
        if kind is None or None in sizes.values():
            return [
                f"{name}: expected {'None' if kind is None else 'a number'} where"
                f" addition_embed_type is {kind!r}, got {value!r}"
                for name, value in sizes.items()
                if (value is None) != (kind is None)
            ]
        problems = []
        if width % 2:
            problems.append(f"addition_time_embed_dim: expected an even number, got {width}")
        if self.pooled_width < 1:
            problems.append(
                f"projection_class_embeddings_input_dim: expected more than {TIME_IDS} times the"
                f" addition_time_embed_dim {width}, got {total}"
            )
        return problems


def _each(entry: int | tuple[int, ...], count: int) -> tuple[int, ...]:
    """An entry of the transformer layers, one number for each transformer."""
    return entry if isinstance(entry, tuple) else (entry,) * count
