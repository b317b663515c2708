"""The text input of a UNet."""

import dataclasses
import typing

import jax
from jaxtyping import Array, Float


@typing.no_type_check  # tree transformations rebuild it around specs, shapes and placeholders
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conditioning:
    """The text input of a UNet, from teacher, student and plug-ins alike.

    Attributes:
        tokens: what the cross-attention layers attend to, [B, L, D].
        pooled: one vector per prompt, [B, P]; None in families without one (SD 1.x, SD 2.x).
    """

    tokens: Float[Array, "B L D"]
    pooled: Float[Array, "B P"] | None = None
