"""Data sets that other packages read, by name: NAME or NAME#SPLIT."""

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
      name: of the set in its package, or its folder.
      split: such as "train" or "train[:10%]".
      label: shard label of its records, unique in a split of the prepared set.
    """

    name: str
    split: str
    label: str


@dataclass(frozen=True)
class OpenSet:
    """An open split of a set.

    Attributes:
      rows: by number, with images still encoded.
      content: identifies the content of the set among sets of its name.
      folders: that may hold image files.
    """

    rows: Any
    content: str
    folders: Sequence[AnyPath] = ()


@dataclass(frozen=True)
class SetShard:
    """Yields a range of a set's rows. The row number is the sample's name.

    Attributes:
      of: the set.
      content: as in `OpenSet`.
      image: column of the image.
      first: number of the first row.
      count: number of rows.
      open: opens the set.
    """

    of: Named
    content: str
    image: str
    first: int
    count: int
    open: Callable[[Named], OpenSet] = field(repr=False, compare=False)

    @property
    def source(self) -> str:
        """The name and the split of the set."""
        return f"{self.of.name}#{self.of.split}"

    def __call__(self) -> Iterator[Record]:
        """The records, in the order of the set."""
        opened = self.open(self.of)
        for number in range(self.first, self.first + self.count):
            name, shard = str(number), self.of.label
            try:
                row = dict(opened.rows[number])
            except UnicodeDecodeError:
                yield Record(name, shard, None, {}, BAD_ROW)
                continue
            image, fault = picture.read(row.pop(self.image), opened.folders)
            yield Record(name, shard, image, row, fault)


def shards(
    where: Sequence[str],
    split: str,
    image: str,
    rows_per_shard: int,
    open_set: Callable[[Named], OpenSet],
) -> list[SetShard]:
    """The shards of the sets in a split of the prepared set.

    Args:
      where: NAME or NAME#SPLIT.
      split: default for NAME.
      image: column of the image.
      rows_per_shard: at most.
      open_set: opens a set; small to pickle.

    Raises:
      ValueError: a set is named twice, or as `open_set` raises.
    """
    found = []
    for each in named(where, split):
        opened = open_set(each)
        for first in range(0, len(opened.rows), rows_per_shard):
            count = min(rows_per_shard, len(opened.rows) - first)
            found.append(SetShard(each, opened.content, image, first, count, open_set))
    return found


def named(where: Sequence[str], split: str) -> list[Named]:
    """The sets of `where`, see `shards`.

    Raises:
      ValueError: a set is named twice.
    """
    entries = [each.partition("#") for each in where]
    found = [(name, part or split) for name, _, part in entries]
    if len(set(found)) < len(found):
        twice = next(each for each in found if found.count(each) > 1)
        raise ValueError(f"{'#'.join(twice)} is named more than once")
    short = [PurePosixPath(name).name for name, _ in found]
    labels = short if len(set(short)) == len(short) else ["#".join(each) for each in found]
    return [Named(*each, label) for each, label in zip(found, labels, strict=True)]
