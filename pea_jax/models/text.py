"""What every text tower gives back."""

import dataclasses
import typing

import jax
from jaxtyping import Array, Float


@typing.no_type_check  # tree transformations rebuild it around specs, shapes and placeholders
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TextOutput:
    """The output of a text tower.

    Attributes:
        tokens: the last hidden state, after whatever norm the tower ends with, [B, L, D].
        pooled: one vector a prompt, [B, P]; None for towers that have none.
        hidden_states: the embeddings and then the output of every layer, layers + 1 of [B, L, D],
            in transformers' order. A norm that the tower ends with is not in the last of them.
    """

    tokens: Float[Array, "B L D"]
    pooled: Float[Array, "B P"] | None
    hidden_states: tuple[Float[Array, "B L D"], ...]
