"""Sets of TensorFlow Datasets in ArrayRecord, our own among them, by name or folder."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow_datasets as tfds

from pea_jax import storage
from pea_jax.data.origins import picture, sets
from pea_jax.data.origins.record import Record


@dataclass(frozen=True)
class SetShard:
    """Yields a stretch of a set's rows; their numbers are the samples' names.

    Attributes:
      of: the set; its name is NAME, NAME/CONFIG:VERSION or a folder.
      data_dir: where named sets lie.
      full_name: what the set calls itself, with its version.
      image: the feature of the picture.
      first: number of the first row.
      count: of rows.
    """

    of: sets.Named
    data_dir: str = field(repr=False)
    full_name: str
    image: str
    first: int
    count: int

    @property
    def source(self) -> str:
        """What it is read from."""
        return f"{self.of.name}#{self.of.split}"

    def __call__(self) -> Iterator[Record]:
        """The records, in the order of the set."""
        rows = _rows(self.of.name, self.data_dir, self.of.split, self.image)
        for number in range(self.first, self.first + self.count):
            row = dict(rows[number])
            image, fault = picture.read(row.pop(self.image), None)
            yield Record(str(number), self.of.label, image, row, fault)


def shards(
    where: Sequence[str], split: str, image: str, rows_per_shard: int, data_dir: str
) -> list[SetShard]:
    """The shards of sets that are prepared already.

    Args:
      where: NAME or NAME#SPLIT, NAME also with /CONFIG and :VERSION, or a folder of a version.
      split: where none is named.
      image: the feature of the picture.
      rows_per_shard: at most.
      data_dir: where named sets lie.

    Raises:
      ValueError: no such set, split or feature, or files of another format than ArrayRecord.
    """
    found = []
    for each in sets.named(where, split):
        full_name = _reader(each.name, data_dir).info.full_name
        rows = _rows(each.name, data_dir, each.split, image)
        found += [
            SetShard(each, data_dir, full_name, image, *stretch)
            for stretch in sets.stretches(len(rows), rows_per_shard)
        ]
    return found


@functools.lru_cache(maxsize=8)
def _reader(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    folder = storage.as_path(name)
    if (folder / "dataset_info.json").is_file():
        return tfds.builder_from_directory(folder)
    reader = tfds.builder(name, data_dir=data_dir)
    if not reader.info.splits:
        raise ValueError(f"{name} is not prepared in {data_dir}: TFDS makes it first")
    return reader


@functools.lru_cache(maxsize=8)
def _rows(name: str, data_dir: str, split: str, image: str) -> Any:
    """A split of a set at random access, its pictures not decoded."""
    reader = _reader(name, data_dir)
    features = reader.info.features
    if image not in features or not isinstance(features[image], tfds.features.Image):
        raise ValueError(f"{name}: no feature {image!r} of pictures, but {sorted(features)}")
    try:
        return reader.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise ValueError(f"{name}: expected files in ArrayRecord ({error})") from error
