"""Names of sets that other packages read: NAME, or NAME#SPLIT."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath


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
