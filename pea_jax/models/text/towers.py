"""What every text tower gives back, and several towers as one."""

import dataclasses
import typing
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int


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


class ConcatenatedTowers(nnx.Module):
    """Several text towers, each reading the same prompts by its own tokens.

    Token i of the output is token i of every tower, one beside the other on the feature axis:
    [B, max(L1, L2, ...), D1 + D2 + ...], as in the paper's "mul_clip + chinese_clip" (method.md,
    "Language encoders"). Where the towers' lengths differ, the tokens of the shorter ones are
    followed by zeros, no tower's tokens of padding; the authors' code has no such rule and wants
    equal lengths.

    Args:
        towers: ids and mask [B, Li] -> TextOutput.
        lengths: how many columns of ids and mask are each tower's, in order.

    Raises:
        ValueError: another number of lengths than of towers.
    """

    def __init__(self, towers: Sequence[nnx.Module], lengths: Sequence[int]):
        if len(towers) != len(lengths):
            raise ValueError(f"expected a length a tower ({len(towers)}), got {len(lengths)}")
        self.towers = nnx.List(list(towers))
        self.lengths = tuple(lengths)

    def __call__(
        self, ids: Int[Array, "B L"], mask: Int[Array, "B L"] | Bool[Array, "B L"] | None = None
    ) -> TextOutput:
        """Encode prompts.

        Args:
            ids: those of every tower side by side on the length axis, [B, sum of lengths].
            mask: the same, nonzero for the tokens to look at; None for all of them.

        Returns:
            tokens [B, max of lengths, sum of widths]; pooled is None; no hidden states.

        Raises:
            ValueError: another number of columns.
        """
        if ids.shape[1] != sum(self.lengths):
            raise ValueError(
                f"expected ids of {' + '.join(map(str, self.lengths))} columns, got {ids.shape[1]}"
            )
        tokens, start, longest = [], 0, max(self.lengths)
        for tower, length in zip(self.towers, self.lengths, strict=True):
            own = slice(start, start + length)
            states = tower(ids[:, own], None if mask is None else mask[:, own]).tokens
            tokens.append(jnp.pad(states, ((0, 0), (0, longest - length), (0, 0))))
            start += length
        return TextOutput(jnp.concatenate(tokens, axis=-1), pooled=None, hidden_states=())
