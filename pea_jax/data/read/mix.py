"""An endless sequence of weighted choices with random access.

The counts of the choices are rounded rather than drawn; drawn counts would deviate by their square
root. The choices are sorted by weight and split recursively into two groups of nearly equal weight.
Of n positions for two groups, the first group gets n times its share of the weight, rounded to the
nearest integer. These counts never decrease with n, so they also determine the counts within any
block of positions. The order within a block is random.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Int64


# grain.MapDataset.mix has nearly the same counts but another, unshuffled order. Existing runs must
# get the same rows when they resume, so this sequence stays.
@dataclass(frozen=True)
class Mix:
    """The sequence. It depends on the arguments alone, not on the numpy version.

    After every block the counts deviate from their shares by less than 1 for the nine SDXL buckets,
    and by less than 1.5 for any likely weights (the bound is half the number of splits above a
    choice). Counts within one block deviate by less than 2.

    Attributes:
      weights: positive weights of the choices; any sum.
      seed: for the order within blocks.
      block: positions per block.
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
        """The choice at a position, and the number of earlier positions with the same choice."""
        if len(self.weights) == 1:
            return 0, position
        block, place = divmod(position, self.block)
        choices, ordinals = _block(self, block)
        return int(choices[place]), int(ordinals[place])

    def counts(self, blocks: int) -> tuple[int, ...]:
        """The count of each choice in the first `blocks` blocks."""
        weights = _integers(self.weights)
        order = sorted(weights, key=lambda choice: -weights[choice])
        counts = _share_out(blocks * self.block, order, weights)
        return tuple(counts[choice] for choice in range(len(weights)))


@functools.lru_cache(maxsize=256)
def _integers(weights: tuple[float, ...]) -> dict[int, int]:
    """Exactly proportional integers, so that rounding errors never accumulate."""
    fractions = [Fraction(weight) for weight in weights]
    scale = math.lcm(*(fraction.denominator for fraction in fractions))
    return {choice: int(fraction * scale) for choice, fraction in enumerate(fractions)}


def _share_out(count: int, choices: Sequence[int], weights: Mapping[int, int]) -> dict[int, int]:
    """The count of each choice in `count` positions."""
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
    """The choices of a block, and for each the number of earlier positions with that choice."""
    before = mix.counts(number)
    counts = np.subtract(mix.counts(number + 1), before)
    choices = np.repeat(np.arange(len(counts)), counts)
    # Sorted by raw random bits, which are the same in every numpy version.
    drawn = np.random.PCG64([mix.seed, number]).random_raw(mix.block)
    choices = choices[np.argsort(drawn, kind="stable")]
    ordinals = np.empty_like(choices)
    for choice, start in enumerate(before):
        (places,) = np.nonzero(choices == choice)
        ordinals[places] = start + np.arange(len(places))
    return choices, ordinals
