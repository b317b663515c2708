"""An endless sequence of choices in given proportions, that can be entered anywhere.

Drawn at random, the counts of rare choices would be off by the square root of what they are; here
they are rounded, not drawn. The choices, the most frequent first, are parted again and again into
two groups, as equal in weight as that order allows; of n positions that two groups have together
the first gets n times its part of their weight, rounded to the nearest number. Such counts only
grow with n, by one a position, so they also say what any block of positions holds. Within a block
the order is drawn.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Int64


@dataclass(frozen=True)
class Mix:
    """The sequence; equal arguments make the same one, with any version of numpy.

    At the end of every block the counts are off their shares by less than 1 for the nine buckets of
    SDXL, and for any likely weights by less than 1.5 (half the number of partings that lead to a
    choice bounds it); those within one block by less than 2.

    Attributes:
      weights: of the choices, positive; their sum may be any.
      seed: of the order within blocks.
      block: positions whose order is drawn together.
    """

    weights: tuple[float, ...]
    seed: int
    block: int

    def __post_init__(self):
        if not self.weights or not all(0 < weight < math.inf for weight in self.weights):
            raise ValueError(f"weights of a mix: expected positive numbers, got {self.weights}")
        if self.block < 1 or self.seed < 0:
            raise ValueError(
                "mix: expected a block of at least 1 and a seed of at least 0, "
                f"got {self.block} and {self.seed}"
            )

    def at(self, position: int) -> tuple[int, int]:
        """The choice at a position, and how many positions before it have the same one."""
        if len(self.weights) == 1:
            return 0, position
        block, place = divmod(position, self.block)
        choices, ordinals = _block(self, block)
        return int(choices[place]), int(ordinals[place])

    def counts(self, blocks: int) -> tuple[int, ...]:
        """How often each choice comes in the first so many blocks."""
        weights = _integers(self.weights)
        order = sorted(weights, key=lambda choice: -weights[choice])
        counts = _share_out(blocks * self.block, order, weights)
        return tuple(counts[choice] for choice in range(len(weights)))


@functools.lru_cache(maxsize=256)
def _integers(weights: tuple[float, ...]) -> dict[int, int]:
    """Exactly proportional: with them no position, however far, is off by a rounding."""
    fractions = [Fraction(weight) for weight in weights]
    scale = math.lcm(*(fraction.denominator for fraction in fractions))
    return {choice: int(fraction * scale) for choice, fraction in enumerate(fractions)}


def _share_out(count: int, choices: Sequence[int], weights: Mapping[int, int]) -> dict[int, int]:
    """What each choice gets of `count` positions."""
    if len(choices) == 1:
        return {choices[0]: count}
    whole, so_far, cut = sum(weights[choice] for choice in choices), weights[choices[0]], 1
    while 2 * so_far + weights[choices[cut]] < whole:
        so_far, cut = so_far + weights[choices[cut]], cut + 1
    first = (2 * count * so_far + whole) // (2 * whole)
    rest = _share_out(count - first, choices[cut:], weights)
    return _share_out(first, choices[:cut], weights) | rest


@functools.lru_cache(maxsize=64)
def _block(mix: Mix, number: int) -> tuple[Int64[np.ndarray, "K"], Int64[np.ndarray, "K"]]:
    """The choices of a block, and of each how many came before in the whole sequence."""
    before = mix.counts(number)
    counts = np.subtract(mix.counts(number + 1), before)
    choices = np.repeat(np.arange(len(counts)), counts)
    # Sorted by what the bit generator gives, which no version of numpy may change.
    drawn = np.random.PCG64([mix.seed, number]).random_raw(mix.block)
    choices = choices[np.argsort(drawn, kind="stable")]
    ordinals = np.empty_like(choices)
    for choice, start in enumerate(before):
        (places,) = np.nonzero(choices == choice)
        ordinals[places] = start + np.arange(len(places))
    return choices, ordinals
