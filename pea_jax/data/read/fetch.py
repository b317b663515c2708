"""The work of a loader's worker: from an element number to a decoded row."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pea_jax.data import images
from pea_jax.data.read.plan import CENTRE, RANDOM, BatchPart, BatchPlan, Stream
from pea_jax.data.read.source import Source


@dataclass(frozen=True)
class Fetch:
    """Element number -> decoded row. Elements number this host's rows through all its batches.

    Attributes:
      source: of the rows.
      languages: names of the language numbers.
      plan: of all batches.
      shard_index: index of this host.
      crop: one of `plan.CROPS`.
      random_flip: mirror every image with probability 1/2.
      max_bad: number of different images that may be unreadable on this host.
    """

    source: Source
    languages: tuple[str, ...]
    plan: BatchPlan
    shard_index: int
    crop: str
    random_flip: bool
    max_bad: int

    @property
    def share(self) -> int:
        """Elements per step."""
        return sum(part.share for part in self.plan.parts)

    def __call__(self, number: int) -> dict[str, Any]:
        """A row's "key", "picture" (`Source.picture`), captions and "language".

        "bad" lists key and reason of each unreadable row that this row replaces. "picture" is None
        if no row is left, or if more rows are unreadable than accepted.
        """
        step, slot = divmod(number, self.share)
        for part in self.plan.parts:
            if slot < part.share:
                break
            slot -= part.share
        stream, position = self.plan.place(part, step, self.shard_index * part.share + slot)
        size, view = self.plan.size(step), self._view(stream, position)
        bad = []
        # One try more than accepted: the loader raises after that many unreadable rows.
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


def _candidates(part: BatchPart, stream: Stream, position: int) -> Iterator[int]:
    """The row at a position, then its substitutes: first of its stream, then of the whole part."""
    yield from stream.candidates(position)
    for other in itertools.chain(*part.streams):
        if other is not stream:
            yield from other.candidates(0)
