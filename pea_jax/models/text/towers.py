"""The output of a text tower, its mask, and the concatenation of several towers."""

import dataclasses
import typing
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

#: A mask of prompts, nonzero for tokens that are attended to; None attends to all of them.
Mask = Int[Array, "B L"] | Bool[Array, "B L"] | None


@typing.no_type_check  # tree transformations rebuild it around specs, shapes and placeholders
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TextOutput:
    """The output of a text tower.

    Attributes:
        tokens: the last hidden state, after the tower's final norm if it has one, [B, L, D].
        pooled: one vector per prompt, [B, P]; None for towers without one.
        hidden_states: the embeddings and the output of every layer, layers + 1 of [B, L, D], in
            transformers' order. The last one is before the final norm.
    """

    tokens: Float[Array, "B L D"]
    pooled: Float[Array, "B P"] | None
    hidden_states: tuple[Float[Array, "B L D"], ...]


def run_layers(
    layers: Iterable[nnx.Module], x: Float[Array, "B L D"], *arguments
) -> tuple[Float[Array, "B L D"], ...]:
    """Runs the layers one after another; returns `x` and the output of each."""
    states = [x]
    for layer in layers:
        states.append(layer(states[-1], *arguments))
    return tuple(states)


def key_mask(mask: Mask) -> Bool[Array, "B 1 1 L"] | None:
    """A tower's mask in the form of the attention core: True for keys that are attended to."""
    return None if mask is None else (mask != 0)[:, None, None, :]


class ConcatenatedTowers(nnx.Module):
    """Several text towers that encode the same prompts, each with its own tokens.

    Token i of the output is token i of every tower, concatenated on the feature axis:
    [B, max(L1, L2, ...), D1 + D2 + ...], as in the paper's "mul_clip + chinese_clip" (method.md,
    "Language encoders"). The tokens of shorter towers are padded with zeros. The authors' code has
    no such rule: it needs equal lengths.

    Args:
        towers: modules that map ids and mask, [B, Li], to a TextOutput.
        lengths: number of columns of ids and mask for each tower, in order.

    Raises:
        ValueError: the numbers of lengths and of towers differ.
    """

    def __init__(self, towers: Sequence[nnx.Module], lengths: Sequence[int]):
        if len(towers) != len(lengths):
            raise ValueError(f"expected a length a tower ({len(towers)}), got {len(lengths)}")
        self.towers = nnx.List(list(towers))
        self.lengths = tuple(lengths)

    def __call__(self, ids: Int[Array, "B L"], mask: Mask = None) -> TextOutput:
        """Encode prompts.

        Args:
            ids: the ids of all towers, concatenated on the length axis, [B, sum of lengths].
            mask: same shape, nonzero for tokens that are attended to; None for all of them.

        Returns:
            tokens [B, max of lengths, sum of widths]; pooled is None; no hidden states.

        Raises:
            ValueError: the number of columns is not the sum of lengths.
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
