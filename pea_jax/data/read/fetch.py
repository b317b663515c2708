"""From an element's number to a decoded row: what workers do."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pea_jax.data import images
from pea_jax.data.read.plan import CENTRE, RANDOM, Part, Plan, Stream
from pea_jax.data.read.source import Source


@dataclass(frozen=True)
class Fetch:
    """Element number -> a decoded row. Elements count this host's rows through all its batches.

    Attributes:
      source: of the rows.
      languages: what the numbers of languages stand for.
      plan: of all batches.
      shard_index: this host's number.
      crop: of `plan.CROPS`.
      random_flip: mirror one picture of two, at random.
      max_bad: how many different images may be unreadable on this host.
    """

    source: Source
    languages: tuple[str, ...]
    plan: Plan
    shard_index: int
    crop: str
    random_flip: bool
    max_bad: int

    @property
    def share(self) -> int:
        """Elements a step."""
        return sum(part.share for part in self.plan.parts)

    def __call__(self, number: int) -> dict[str, Any]:
        """A row's "key", "picture" (`Source.picture`), captions and "language"; and, in "bad", the
        key of every row that had its place before and can't be read, with the reason. Where no
        other row is left, or there are more than are accepted, "picture" is None.
        """
        step, slot = divmod(number, self.share)
        for part in self.plan.parts:
            if slot < part.share:
                break
            slot -= part.share
        stream, position = self.plan.place(part, step, self.shard_index * part.share + slot)
        size, view = self.plan.size(step), self._view(stream, position)
        bad = []
        # One try more than the run accepts: then the iterator raises, whatever follows here.
        tries = itertools.islice(_candidates(part, stream, position), self.max_bad + 1)
        for number in tries:
            row = self.source[number]
            try:
                picture = self.source.picture(row, size, view)
            except images.CorruptImageError as error:
                bad.append((row.key, str(error)))
                continue
            return {
                "key": row.key,
                "picture": picture,
                "caption": row.caption,
                "caption_en": row.caption_en,
                "language": np.int32(self.languages.index(row.language)),
                "bad": bad,
            }
        return {"picture": None, "bad": bad}

    def _view(self, stream: Stream, position: int) -> images.View:
        if self.crop == CENTRE and not self.random_flip:
            return images.CENTRE
        drawn = stream.view(position)
        place = (drawn.down, drawn.right) if self.crop == RANDOM else ()
        return images.View(*place, flipped=self.random_flip and drawn.flipped)


def _candidates(part: Part, stream: Stream, position: int) -> Iterator[int]:
    """The row at a position, and those that may stand in for it: of its stream, and where that has
    none that can be read, of the part's others.
    """
    yield from stream.candidates(position)
    for other in itertools.chain(*part.streams):
        if other is not stream:
            yield from other.candidates(0)
