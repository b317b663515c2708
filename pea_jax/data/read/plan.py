"""The plan of all batches: the seed and the step determine which rows a batch contains.

A stream is an endless sequence of shuffled epochs over the rows of one kind. A kind is a part of
the batch (native or parallel) in one bucket, and of one language if languages have weights. Each
step is assigned to a bucket; the k-th step of a bucket takes the k-th batch of that bucket. The
rows of each batch part are assigned to the languages, each of which continues its own stream. A
rare bucket or language therefore takes longer per epoch, but loses no rows.
"""

import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from jaxtyping import Int64, UInt

from pea_jax.data import buckets as buckets_
from pea_jax.data.buckets import Bucket, BucketWarning
from pea_jax.data.images import View
from pea_jax.data.read.mix import Mix
from pea_jax.data.read.source import Source

#: Steps per block of the bucket sequence. Bucket counts match the configuration after each block.
STEPS = 1000

#: Which part of an image is kept if its aspect differs from its bucket's.
CROPS = CENTRE, RANDOM = "centre", "random"


@dataclass(frozen=True)
class Stream:
    """An endless sequence of shuffled epochs over the rows of one kind.

    Attributes:
      rows: row numbers in the source, ascending, in the smallest dtype because every worker holds
        all of them.
      order: position in the stream -> place in `rows`.
      seed: for the order and the views.
    """

    rows: UInt[np.ndarray, "N"]
    order: grain.MapDataset
    seed: int

    def candidates(self, position: int) -> Iterator[int]:
        """The row at a position, then all following rows of the source, cyclically."""
        place = self.order[position]
        for number in range(len(self.rows)):
            yield int(self.rows[(place + number) % len(self.rows)])

    def view(self, position: int) -> View:
        """The random view at a position: a uniform crop, flipped with probability 1/2."""
        drawn = np.random.SeedSequence([self.seed, position]).generate_state(3)
        down, right, coin = ((int(number) + 1) / 2**32 for number in drawn)
        return View(down, right, flipped=coin > 0.5)


@dataclass(frozen=True)
class BatchPart:
    """The native rows of a step, or its parallel rows.

    Attributes:
      name: the part's key in a batch.
      batch: rows per step, over all hosts.
      share: rows per step on this host.
      streams: one or more per bucket.
      mixes: per bucket, the assignment of rows to its streams; one block is one batch.
    """

    name: str
    batch: int
    share: int
    streams: tuple[tuple[Stream, ...], ...]
    mixes: tuple[Mix, ...]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(len(stream.rows) for streams in self.streams for stream in streams)


@dataclass(frozen=True)
class BatchPlan:
    """The content of all batches.

    Attributes:
      buckets: the buckets in use.
      mix: the assignment of steps to the buckets.
      parts: the parts of every batch, in order.
    """

    buckets: tuple[Bucket, ...]
    mix: Mix
    parts: tuple[BatchPart, ...]

    def size(self, step: int) -> tuple[int, int]:
        """Height and width of the images of a step; steps count from 0."""
        bucket, _ = self.mix.at(step)
        return self.buckets[bucket][:2]

    def place(self, part: BatchPart, step: int, row: int) -> tuple[Stream, int]:
        """The stream and the stream position of a row in a batch part."""
        bucket, draw = self.mix.at(step)
        choice, position = part.mixes[bucket].at(draw * part.batch + row)
        return part.streams[bucket][choice], position


def make_plan(
    source: Source,
    *,
    batch: Mapping[str, int],
    seed: int,
    buckets: Sequence[Bucket],
    languages: Sequence[str],
    weights: Mapping[str, float],
    shard_count: int = 1,
) -> BatchPlan:
    """The plan of a split.

    Args:
      source: the split.
      batch: part -> rows per step, over all hosts.
      seed: for all random choices.
      buckets: one or more.
      languages: of the captions.
      weights: language -> weight for all languages; empty to take all rows equally often.
      shard_count: number of hosts.

    Raises:
      ValueError: a part or a language has no rows, or `buckets.allot` fails.
    """
    batch = {name: size for name, size in batch.items() if size}
    rows = {name: _select(source, name, batch[name], languages) for name in batch}
    sides = {name: source.sides(chosen) for name, chosen in rows.items()}
    used, places = buckets_.allot(sides, buckets)
    if len(buckets) > 1:
        _warn_of_few(used, places, batch)
    kinds = {name: _by_kind(source, rows[name], places[name], used, weights) for name in batch}
    lacking = set(weights).difference(*(kind for part in kinds.values() for kind in part.values()))
    if lacking:
        raise ValueError(
            f"{source.folder}, split {source.split}: languages {sorted(lacking)} have a weight, "
            f"but no {' or '.join(batch)} rows"
        )

    def make_part(name: str, size: int) -> BatchPart:
        streams, mixes = [], []
        for bucket, each in kinds[name].items():
            words = [name, buckets_.name(bucket)] if len(buckets) > 1 else [name]
            streams.append(tuple(_stream(each[one], seed, [*words, one]) for one in each))
            shares = tuple(float(weights.get(one, 1)) for one in each)
            mixes.append(Mix(shares, _own_seed(seed, [*words, "languages"]), size))
        return BatchPart(name, size, size // shard_count, tuple(streams), tuple(mixes))

    probabilities = tuple(float(probability) for *_, probability in used)
    mix = Mix(probabilities, _own_seed(seed, ["buckets"]), STEPS)
    return BatchPlan(used, mix, tuple(make_part(*each) for each in batch.items()))


def _select(
    source: Source, part: str, size: int, languages: Sequence[str]
) -> Int64[np.ndarray, "N"]:
    rows = source.select(native=part == "native", languages=languages)
    if not len(rows):
        raise ValueError(
            f"{source.folder}, split {source.split}, has no {part} rows of {list(languages)}, "
            f"but a step should take {size}"
        )
    return rows


def _by_kind(
    source: Source,
    rows: Int64[np.ndarray, "N"],
    places: Int64[np.ndarray, "N"],
    used: Sequence[Bucket],
    languages: Collection[str],
) -> dict[Bucket, dict[str, UInt[np.ndarray, "_"]]]:
    """Bucket -> language -> rows, without empty groups.

    Args:
      source: of the rows.
      rows: row numbers, ascending.
      places: index of each row's bucket in `used`.
      used: the buckets.
      languages: all languages of the rows; empty to group all languages under "".
    """
    names = list(languages) or [""]
    kinds = places * len(names)
    if languages:
        row_languages = source.index["language"][rows]
        for number, language in enumerate(names):
            kinds[row_languages == language] += number
    count = len(used) * len(names)
    # Sorting small dtypes takes one pass. A stable sort keeps the rows of a kind ascending.
    order = np.argsort(kinds.astype(np.min_scalar_type(count)), kind="stable")
    rows = rows.astype(np.min_scalar_type(len(source)))[order]
    ends = np.cumsum(np.bincount(kinds, minlength=count))
    groups = np.split(rows, ends[:-1])
    found = {}
    for place, bucket in enumerate(used):
        own = groups[place * len(names) : (place + 1) * len(names)]
        found[bucket] = {name: group for name, group in zip(names, own, strict=True) if len(group)}
    return found


def _stream(rows: UInt[np.ndarray, "N"], seed: int, words: Sequence[str]) -> Stream:
    own = _own_seed(seed, words)
    return Stream(rows, grain.MapDataset.range(len(rows)).shuffle(seed=own).repeat(), own)


def _own_seed(seed: int, words: Sequence[str]) -> int:
    # Hashed because Grain adds the epoch number: with adjacent seeds, one kind's epoch would have
    # the order of another kind's next epoch.
    stream = int.from_bytes(" ".join(filter(None, words)).encode(), "little")
    return int(np.random.SeedSequence([seed, stream]).generate_state(1)[0])


def _warn_of_few(
    used: Sequence[Bucket], places: Mapping[str, np.ndarray], batch: Mapping[str, int]
) -> None:
    few = []
    for name, size in batch.items():
        counts = np.bincount(places[name], minlength=len(used))
        few += [
            f"{buckets_.name(bucket)} has {count} {name} rows and a step takes {size}"
            for bucket, count in zip(used, counts, strict=True)
            if count < size
        ]
    if few:
        warnings.warn(
            f"batches of some buckets hold a row more than once: {'; '.join(few)}",
            BucketWarning,
            stacklevel=2,
        )


def config_problems(
    buckets: Sequence[Any],
    crop: str,
    languages: Sequence[str],
    language_weights: Sequence[float],
) -> list[str]:
    """Invalid values of these config fields, one line each, whatever the data set."""
    problems = [f"data.buckets: {problem}" for problem in buckets_.bucket_problems(buckets)]
    if crop not in CROPS:
        problems.append(f"data.crop: expected {' or '.join(CROPS)}, got {crop!r}")
    if not languages or len(set(languages)) < len(languages):
        problems.append(f"data.languages: expected one or more, each once, got {tuple(languages)}")
    if language_weights and (
        len(language_weights) != len(languages)
        or not all(0 < weight < math.inf for weight in language_weights)
    ):
        problems.append(
            f"data.language_weights: expected none or {len(languages)} positive numbers, one for "
            f"each of data.languages, got {tuple(language_weights)}"
        )
    return problems
