"""Sets of the package `datasets`: by their names on the Hub, or folders of save_to_disk.

The package is imported here alone, when such a set is asked for (the extra "datasets").
"""

import functools
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pea_jax.data.origins import picture, sets
from pea_jax.data.origins.record import BAD_ROW, Record

#: With one of these a folder is one of save_to_disk.
_SAVED = ("dataset_dict.json", "state.json")
#: Features that reading a row would decode, and no row of ours is made of.
_FOREIGN = ("Audio", "Video", "Pdf", "Nifti")


@dataclass(frozen=True)
class SetShard:
    """Yields a stretch of a set's rows; their numbers are the samples' names.

    Attributes:
      of: the set; its name is NAME, NAME:CONFIG or a folder.
      fingerprint: of the content, by the package.
      image: the column of the picture.
      first: number of the first row.
      count: of rows.
    """

    of: sets.Named
    fingerprint: str
    image: str
    first: int
    count: int

    @property
    def source(self) -> str:
        """What it is read from."""
        return f"{self.of.name}#{self.of.split}"

    def __call__(self) -> Iterator[Record]:
        """The records, in the order of the set."""
        rows, shard = _open(self.of.name, self.of.split), self.of.label
        for number in range(self.first, self.first + self.count):
            try:
                row = dict(rows[number])
            except UnicodeDecodeError:
                yield Record(str(number), shard, None, {}, BAD_ROW)
                continue
            image, fault = picture.read(row.pop(self.image), Path())
            yield Record(str(number), shard, image, row, fault)


def shards(where: Sequence[str], split: str, image: str, rows_per_shard: int) -> list[SetShard]:
    """The shards of sets, which are downloaded where they are on the Hub.

    Args:
      where: NAME or NAME#SPLIT, NAME also with :CONFIG or a folder.
      split: where none is named.
      image: the column of the picture.
      rows_per_shard: at most.

    Raises:
      ValueError: no such set, split or column, or the package is not installed.
    """
    if importlib.util.find_spec("datasets") is None:
        raise ValueError(
            "sets of Hugging Face take the package datasets: pip install 'pea-jax[datasets]'"
        )
    found = []
    for each in sets.named(where, split):
        rows = _open(each.name, each.split)
        if image not in rows.column_names:
            raise ValueError(
                f"{each.name}: no column {image!r} of pictures, but {rows.column_names}"
            )
        found += [
            SetShard(each, rows._fingerprint, image, *stretch)
            for stretch in sets.stretches(len(rows), rows_per_shard)
        ]
    return found


@functools.lru_cache(maxsize=8)
def _open(name: str, split: str) -> Any:
    """A split of a set, its pictures not decoded."""
    import datasets

    folder = Path(name).expanduser()
    if any((folder / mark).is_file() for mark in _SAVED):
        rows = datasets.load_from_disk(str(folder))
        if isinstance(rows, datasets.DatasetDict):
            if split not in rows:
                raise ValueError(f"{name} has the splits {sorted(rows)}, not {split!r}")
            rows = rows[split]
    elif folder.is_dir():
        rows = datasets.load_dataset(str(folder), split=split)
    else:
        repository, _, config = name.partition(":")
        rows = datasets.load_dataset(repository, config or None, split=split)
    kept = [
        column
        for column, feature in rows.features.items()
        if type(feature).__name__ not in _FOREIGN
    ]
    rows = rows.select_columns(kept)
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows
