"""What a text side hands to a UNet."""

import dataclasses
import typing

import jax
from jaxtyping import Array, Float


@typing.no_type_check  # tree transformations rebuild it around specs, shapes and placeholders
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conditioning:
    """The one currency between text and UNet: teacher, student and plug-ins take and give it.

    Attributes:
        tokens: what the cross-attention layers attend to, [B, L, D].
        pooled: one vector a prompt, [B, P]; None for families that have none (SD 1.x, SD 2.x).
    """

    tokens: Float[Array, "B L D"]
    pooled: Float[Array, "B P"] | None = None
