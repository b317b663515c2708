"""Sets that other packages read, by names: NAME, or NAME#SPLIT."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pea_jax.data.origins import picture
from pea_jax.data.origins.record import BAD_ROW, Record
from pea_jax.runtime.storage import AnyPath


@dataclass(frozen=True)
class Named:
    """A split of a set.

    Attributes:
      name: of the set as its package knows it, or its folder.
      split: such as "train" or "train[:10%]".
      label: what its rows say they come from, unique in a split of ours.
    """

    name: str
    split: str
    label: str


@dataclass(frozen=True)
class SetShard:
    """Yields a stretch of a set's rows; their numbers are the samples' names.

    Attributes:
      of: the set.
      content: what tells it from another of that name.
      image: the column of the picture.
      first: number of the first row.
      count: of rows.
      open: gives the rows of a set by number, and the folders of its pictures.
    """

    of: Named
    content: str
    image: str
    first: int
    count: int
    open: Callable[[Named], tuple[Sequence[Any], Sequence[AnyPath]]] = field(
        repr=False, compare=False
    )

    @property
    def source(self) -> str:
        """What it is read from."""
        return f"{self.of.name}#{self.of.split}"

    def __call__(self) -> Iterator[Record]:
        """The records, in the order of the set."""
        rows, folders = self.open(self.of)
        for number in range(self.first, self.first + self.count):
            name, shard = str(number), self.of.label
            try:
                row = dict(rows[number])
            except UnicodeDecodeError:
                yield Record(name, shard, None, {}, BAD_ROW)
                continue
            image, fault = picture.read(row.pop(self.image), folders)
            yield Record(name, shard, image, row, fault)


def named(where: Sequence[str], split: str) -> list[Named]:
    """The sets that one of our splits is made of.

    Args:
      where: NAME or NAME#SPLIT.
      split: where none is named.

    Raises:
      ValueError: the same one twice.
    """
    found = []
    for entry in where:
        name, _, part = entry.partition("#")
        found.append((name, part or split))
    if len(set(found)) < len(found):
        twice = next(each for each in found if found.count(each) > 1)
        raise ValueError(f"{'#'.join(twice)} is named more than once")
    short = [PurePosixPath(name).name for name, _ in found]
    labels = short if len(set(short)) == len(short) else ["#".join(each) for each in found]
    return [Named(*each, label) for each, label in zip(found, labels, strict=True)]


def stretches(rows: int, size: int) -> Iterator[tuple[int, int]]:
    """First row and count of each shard when a set is cut."""
    for first in range(0, rows, size):
        yield first, min(size, rows - first)
