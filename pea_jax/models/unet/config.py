"""The sizes of a UNet, read from a checkpoint's config.json and checked."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

#: Fields of the file that Stable Diffusion and SDXL know with these values alone.
ONLY: dict[str, tuple] = {
    "act_fn": ("silu", "swish"),  # two names of one function
    "addition_embed_type_num_heads": (64,),  # of the type "text", which is not supported
    "attention_type": ("default",),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "dropout": (0.0,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None,),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    # our attention takes its softmax in float32 in any case
    "upcast_attention": (None, False, True),
}

#: State of the moving average that a file was saved from (SDXL inpainting): no size among it.
AVERAGING = (
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

#: Fields that the file may give once for all levels.
PER_LEVEL = (
    "layers_per_block",
    "transformer_layers_per_block",
    "attention_heads",
    "only_cross_attention",
)


def _one_of(*allowed: Any) -> tuple[str, Callable[[Any], bool]]:
    text = " or ".join(repr(value) for value in allowed)
    return text, lambda value: any(
        type(value) is type(option) and value == option for option in allowed
    )


_COUNT = ("a positive integer", lambda value: type(value) is int and value > 0)
_NUMBER = ("a number", lambda value: type(value) in (int, float))
_FLAG = _one_of(False, True)
_DEPTH = (
    "a positive integer, or a list of them",
    lambda value: value != () and all(map(_COUNT[1], _each(value, 1))),
)

#: What one value of a field, or one entry of its tuple, must be.
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "in_channels": _COUNT,
    "out_channels": _COUNT,
    "center_input_sample": _FLAG,
    "flip_sin_to_cos": _FLAG,
    "freq_shift": _NUMBER,
    "down_block_types": _one_of("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": _one_of("UpBlock2D", "CrossAttnUpBlock2D"),
    "only_cross_attention": _FLAG,
    "block_out_channels": _COUNT,
    "layers_per_block": _COUNT,
    "downsample_padding": _one_of(0, 1),
    "mid_block_type": _one_of("UNetMidBlock2D", "UNetMidBlock2DCrossAttn"),
    "mid_block_scale_factor": _NUMBER,
    "norm_num_groups": _COUNT,
    "norm_eps": _NUMBER,
    "cross_attention_dim": _COUNT,
    "transformer_layers_per_block": _DEPTH,
    "reverse_transformer_layers_per_block": _DEPTH,
    "attention_heads": _COUNT,
    "use_linear_projection": _FLAG,
    "addition_embed_type": _one_of("text_time"),
    "addition_time_embed_dim": _COUNT,
    "projection_class_embeddings_input_dim": _COUNT,
}

#: Fields with an entry for each level.
_BY_LEVEL = (
    *PER_LEVEL,
    "block_out_channels",
    "down_block_types",
    "up_block_types",
    "reverse_transformer_layers_per_block",
)

#: Fields that may be None: what they name is then not there.
_OPTIONAL = (
    "reverse_transformer_layers_per_block",
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
)


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The sizes of a UNet; the defaults are those of diffusers' UNet2DConditionModel.

    Tuples have one entry a level, from the finest resolution to the coarsest, but `up_block_types`
    and `reverse_transformer_layers_per_block`, which the checkpoints list in the order of the way
    up. An entry of the transformer layers is a number for every spatial transformer of its level,
    or a tuple of one number for each (SSD-1B); the way up has its own where it is pruned otherwise.

    Raises:
        ValueError: names every value that is not supported or does not fit the others.
    """

    sample_size: int | tuple[int, ...] | None = None  # side of the latents in training
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    only_cross_attention: tuple[bool, ...] = (False,) * 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: tuple[int, ...] = (2,) * 4
    downsample_padding: int = 1
    mid_block_type: str = "UNetMidBlock2DCrossAttn"  # UNetMidBlock2D is one resnet alone
    mid_block_scale_factor: float = 1
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: tuple[int | tuple[int, ...], ...] = (1,) * 4
    reverse_transformer_layers_per_block: tuple[int | tuple[int, ...], ...] | None = None
    attention_heads: tuple[int, ...] = (8,) * 4  # the file's attention_head_dim
    use_linear_projection: bool = False
    addition_embed_type: str | None = None  # "text_time": told the pooled text and the time ids
    addition_time_embed_dim: int | None = None  # sinusoids of one time id
    projection_class_embeddings_input_dim: int | None = None  # of pooled text and time ids together

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "UNetConfig":
        """Reads a parsed unet/config.json; keys that start with "_" say who wrote it.

        The file's `attention_head_dim` is the number of heads, and not their size: the name is an
        old mistake of diffusers that every checkpoint carries.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        names = {name: name for name in defaults if name != "attention_heads"}
        names["attention_head_dim"] = "attention_heads"
        values, problems = {}, []
        for key, value in config.items():
            if key in names:
                values[names[key]] = _tuples(value)
            elif key in ONLY:
                if value not in ONLY[key]:
                    expected = " or ".join(repr(allowed) for allowed in ONLY[key])
                    problems.append(f"{key}: expected {expected}, got {value!r}")
            elif key not in AVERAGING and not key.startswith("_"):
                problems.append(f"{key}: not a known field, got {value!r}")
        channels = values.get("block_out_channels", defaults["block_out_channels"])
        levels = len(channels) if isinstance(channels, tuple) else 1
        for name in PER_LEVEL:
            value = values.get(name, defaults[name][0])
            values[name] = value if isinstance(value, tuple) else (value,) * levels
        given = {key: (name, values[name]) for key, name in names.items() if name in values}
        problems += _breaches(given)
        _raise(problems)
        return cls(**values)

    def __post_init__(self):
        fields = dataclasses.fields(self)
        _raise(_breaches({field.name: (field.name, getattr(self, field.name)) for field in fields}))
        channels = self.block_out_channels
        levels = len(channels)
        by_level = [*PER_LEVEL, "down_block_types", "up_block_types"]
        if self.reverse_transformer_layers_per_block is not None:
            by_level.append("reverse_transformer_layers_per_block")
        problems = [
            f"{name}: expected {levels} entries, as block_out_channels has, got {value!r}"
            for name in by_level
            if len(value := getattr(self, name)) != levels
        ]
        if not problems:
            problems += self._misfit_depths()
        if not channels or channels[0] % 2:
            problems.append(f"block_out_channels: expected an even first entry, got {channels}")
        if any(width % self.norm_num_groups for width in channels):
            problems.append(
                f"norm_num_groups: expected a divisor of every entry of block_out_channels"
                f" {channels}, got {self.norm_num_groups}"
            )
        if any(width % heads for width, heads in zip(channels, self.attention_heads, strict=False)):
            problems.append(
                f"attention_head_dim (the number of heads): expected divisors of block_out_channels"
                f" {channels}, got {self.attention_heads}"
            )
        problems += self._misfit_addition()
        _raise(problems)

    @property
    def pooled_width(self) -> int | None:
        """Width of the pooled text vector that the UNet is told; None where it is told none."""
        if self.addition_embed_type is None:
            return None
        return self.projection_class_embeddings_input_dim - TIME_IDS * self.addition_time_embed_dim

    def down_depths(self, level: int) -> tuple[int, ...]:
        """Layers of each spatial transformer of a level's way down; () where there is none."""
        if self.down_block_types[level] == "DownBlock2D":
            return ()
        return _each(self.transformer_layers_per_block[level], self.layers_per_block[level])

    def mid_depths(self) -> tuple[int, ...]:
        """The same of the middle, which is as deep as the first one of the coarsest level."""
        if self.mid_block_type == "UNetMidBlock2D":
            return ()
        return _each(self.transformer_layers_per_block[-1], 1)[:1]

    def up_depths(self, index: int) -> tuple[int, ...]:
        """The same of the way up, by the order of the way up."""
        if self.up_block_types[index] == "UpBlock2D":
            return ()
        entries = self.reverse_transformer_layers_per_block
        if entries is None:
            entries = self.transformer_layers_per_block[::-1]
        return _each(entries[index], self.layers_per_block[::-1][index] + 1)

    def _misfit_depths(self) -> list[str]:
        """Lists of transformer layers that have another length than there are transformers."""
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
        """What cannot be told beside the time, for each of the two widths."""
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


def _tuples(value: Any) -> Any:
    """Lists, and lists within them, as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _breaches(values: Mapping[str, tuple[str, Any]]) -> list[str]:
    """What is wrong with single values, given as {key to report: (field, value)}."""
    problems = []
    for key, (field, value) in values.items():
        if field not in _RULES or (value is None and field in _OPTIONAL):
            continue
        expected, allows = _RULES[field]
        if field not in _BY_LEVEL:
            if not allows(value):
                problems.append(f"{key}: expected {expected}, got {value!r}")
        elif not isinstance(value, tuple):
            problems.append(f"{key}: expected a list, got {value!r}")
        elif not all(allows(entry) for entry in value):
            problems.append(f"{key}: expected for each level {expected}, got {value!r}")
    return problems


def _raise(problems: list[str]) -> None:
    if problems:
        raise ValueError("UNet config: " + "; ".join(problems))
