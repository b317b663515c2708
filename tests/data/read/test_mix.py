"""Sequences of choices: how often, evenly how far, and entered anywhere."""

import itertools
import pickle
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from pea_jax.data import buckets
from pea_jax.data.read.mix import Mix

PAPER = tuple(probability for *_, probability in buckets.SDXL)


def shares(weights):
    return [Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_ten_thousand_steps_have_the_papers_buckets_as_often_as_configured(seed):
    """Random draws of the rarest choice, 49 of 10,000, would deviate by 7."""
    mix = Mix(PAPER, seed, 1000)
    drawn = Counter(mix.at(step)[0] for step in range(10_000))
    for choice, share in enumerate(shares(PAPER)):
        assert abs(drawn[choice] - 10_000 * share) < 1
        assert drawn[choice] == pytest.approx(float(10_000 * share), rel=0.01, abs=1)


@pytest.mark.parametrize(
    ("weights", "block"), [((1, 1), 1), ((3, 1, 2), 4), ((0.9, 0.05, 0.05), 3), (PAPER, 50)]
)
def test_ordinals_and_counts_are_those_of_counting(weights, block):
    """Any entry point continues as if counted from the start."""
    mix = Mix(weights, 3, block)
    seen = Counter()
    for position in range(40 * block):
        if position % block == 0:
            assert mix.counts(position // block) == tuple(seen[i] for i in range(len(weights)))
        choice, ordinal = mix.at(position)
        assert ordinal == seen[choice]
        seen[choice] += 1


def test_counts_never_drift_from_the_shares(rng):
    """Rounding does not accumulate: less than 1.5 after any number of blocks, and 2 within one."""
    far = [*range(40), *(int(number) for number in rng.integers(10**6, 10**12, 40))]
    for count, block in itertools.product((2, 3, 5, 9, 12), (1, 7, 48)):
        for _ in range(6):
            weights = tuple(rng.uniform(0.02, 1, count))
            mix = Mix(weights, 0, block)
            for number in far:
                before, after = mix.counts(number), mix.counts(number + 1)
                assert sum(before) == number * block
                for start, end, share in zip(before, after, shares(weights), strict=True):
                    assert abs(start - number * block * share) < 1.5
                    assert end - start >= 0
                    assert abs(end - start - block * share) < 2
    mix = Mix(PAPER, 0, 1)
    for number in range(10_001):
        for counted, share in zip(mix.counts(number), shares(PAPER), strict=True):
            assert abs(counted - number * share) < 1


def test_two_equal_choices_share_every_even_block():
    mix = Mix((0.5, 0.5), 4, 6)
    blocks = [[mix.at(6 * number + place)[0] for place in range(6)] for number in range(50)]
    assert {tuple(sorted(block)) for block in blocks} == {(0, 0, 0, 1, 1, 1)}
    assert len({tuple(block) for block in blocks}) > 10, "each is shuffled anew"


def test_the_seed_alone_decides_and_no_version_of_numpy():
    def start(seed):
        return [Mix((3, 1, 2), seed, 12).at(position)[0] for position in range(24)]

    assert start(0) == start(0)
    assert start(0) != start(1)
    # By the bit generator's own stream, which numpy keeps.
    drawn = np.random.PCG64([5, 0]).random_raw(4)
    expected = np.array([0, 0, 1, 1])[np.argsort(drawn)]
    mix = pickle.loads(pickle.dumps(Mix((1, 1), 5, 4)))
    assert [mix.at(position)[0] for position in range(4)] == expected.tolist()


def test_one_choice_is_a_count():
    assert [Mix((7.0,), 0, 3).at(position) for position in (0, 5, 10**12)] == [
        (0, 0),
        (0, 5),
        (0, 10**12),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), 0, 1), "expected positive numbers, got ()"),
        (((1.0, 0.0), 0, 1), "expected positive numbers"),
        (((1.0, float("nan")), 0, 1), "expected positive numbers"),
        (((float("inf"),), 0, 1), "expected positive numbers"),
        (((1.0,), 0, 0), "a block of at least 1"),
        (((1.0,), -1, 1), "a seed of at least 0"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match="mix") as error:
        Mix(*arguments)
    assert message in str(error.value)
