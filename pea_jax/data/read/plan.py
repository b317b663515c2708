"""Which row is where in which batch: all of it from the seed and the step, without any history.

A stream is all rows of one kind, end to end in epochs, each shuffled anew. A kind is a part of the
batch, native or parallel, in one bucket, and of one language where languages have weights. Steps
are dealt out to the buckets, and the k-th step of a bucket takes the k-th batch of it; the rows of
each part of a batch are dealt out to the languages, each of which goes on in its own stream. So a
rare bucket, or a rare language, takes longer for an epoch, and loses none of its rows.
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

#: Steps whose buckets are drawn together: what is configured holds at the end of each such block.
STEPS = 1000

#: Which part is kept of a picture that has another aspect than its bucket.
CROPS = CENTRE, RANDOM = "centre", "random"


@dataclass(frozen=True)
class Stream:
    """The rows of one kind, one shuffled epoch after another.

    Attributes:
      rows: their numbers in the source, ascending, in the smallest type that holds them: every
        worker has all of them.
      order: position in the endless stream -> place in `rows`.
      seed: of the order, and of the views.
    """

    rows: UInt[np.ndarray, "N"]
    order: grain.MapDataset
    seed: int

    def candidates(self, position: int) -> Iterator[int]:
        """The row at a position, and then those that follow it in the source, once around."""
        place = self.order[position]
        for number in range(len(self.rows)):
            yield int(self.rows[(place + number) % len(self.rows)])

    def view(self, position: int) -> View:
        """A view for the row at a position, drawn: a crop anywhere, one of two flipped."""
        drawn = np.random.SeedSequence([self.seed, position]).generate_state(3)
        down, right, coin = ((int(number) + 1) / 2**32 for number in drawn)
        return View(down, right, flipped=coin > 0.5)


@dataclass(frozen=True)
class Part:
    """The rows of a step that are native, or those that are parallel.

    Attributes:
      name: the part's key in a batch.
      batch: rows a step, all hosts together.
      share: rows a step, this host.
      streams: of each bucket, one or more.
      mixes: of each bucket, how its rows are dealt out to its streams; a block is a batch.
    """

    name: str
    batch: int
    share: int
    streams: tuple[tuple[Stream, ...], ...]
    mixes: tuple[Mix, ...]

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(len(stream.rows) for streams in self.streams for stream in streams)


@dataclass(frozen=True)
class Plan:
    """All batches.

    Attributes:
      buckets: those that are used.
      mix: how the steps are dealt out to them.
      parts: of every batch, in order.
    """

    buckets: tuple[Bucket, ...]
    mix: Mix
    parts: tuple[Part, ...]

    def size(self, step: int) -> tuple[int, int]:
        """Height and width of the pictures of a step, counted from 0."""
        bucket, _ = self.mix.at(step)
        return self.buckets[bucket][:2]

    def place(self, part: Part, step: int, row: int) -> tuple[Stream, int]:
        """The stream, and the position in it, of a row of a part of a step."""
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
) -> Plan:
    """The plan of a split.

    Args:
      source: the split.
      batch: part -> rows a step, all hosts together.
      seed: of all that is drawn.
      buckets: one or more.
      languages: of the captions.
      weights: of each of the languages; of none, where all rows are to come equally often.
      shard_count: how many hosts there are.

    Raises:
      ValueError: a part or a language without rows, or what `buckets.allot` refuses.
    """
    batch = {name: size for name, size in batch.items() if size}
    rows = {name: _select(source, name, batch[name], languages) for name in batch}
    sides = {
        name: (source.index["height"][chosen], source.index["width"][chosen])
        for name, chosen in rows.items()
    }
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

    def make_part(name: str, size: int) -> Part:
        streams, mixes = [], []
        for bucket, each in kinds[name].items():
            words = [name, buckets_.name(bucket)] if len(buckets) > 1 else [name]
            streams.append(tuple(_stream(each[one], seed, [*words, one]) for one in each))
            shares = tuple(float(weights.get(one, 1)) for one in each)
            mixes.append(Mix(shares, _own_seed(seed, [*words, "languages"]), size))
        return Part(name, size, size // shard_count, tuple(streams), tuple(mixes))

    probabilities = tuple(float(probability) for *_, probability in used)
    mix = Mix(probabilities, _own_seed(seed, ["buckets"]), STEPS)
    return Plan(used, mix, tuple(make_part(*each) for each in batch.items()))


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
    """The rows of each language that has any, by bucket; where none are told apart, all under "".

    Args:
      source: of the rows.
      rows: their numbers, ascending.
      places: of their buckets in `used`.
      used: the buckets.
      languages: to tell apart: none, or those of all of the rows.
    """
    names = list(languages) or [""]
    kinds = places * len(names)
    if languages:
        spoken = source.index["language"][rows]
        for number, language in enumerate(names):
            kinds[spoken == language] += number
    count = len(used) * len(names)
    # Small numbers are sorted in one pass; a stable sort keeps the rows of a kind ascending.
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
    # Hashed: Grain adds the epoch's number to it, and seeds one apart would give one kind's epoch
    # the order of the other's next.
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


def problems(
    buckets: Sequence[Any],
    crop: str,
    languages: Sequence[str],
    language_weights: Sequence[float],
) -> list[str]:
    """What cannot be, whatever the data set, one line each; the names are those of the config."""
    found = [f"data.buckets: {problem}" for problem in buckets_.problems(buckets)]
    if crop not in CROPS:
        found.append(f"data.crop: expected {' or '.join(CROPS)}, got {crop!r}")
    if not languages or len(set(languages)) < len(languages):
        found.append(f"data.languages: expected one or more, each once, got {tuple(languages)}")
    if language_weights and (
        len(language_weights) != len(languages)
        or not all(0 < weight < math.inf for weight in language_weights)
    ):
        found.append(
            f"data.language_weights: expected none or {len(languages)} positive numbers, one for "
            f"each of data.languages, got {tuple(language_weights)}"
        )
    return found
