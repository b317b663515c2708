"""Sets of TensorFlow Datasets in ArrayRecord, our own among them, by name or folder."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow_datasets as tfds

from pea_jax import storage
from pea_jax.data.origins import picture
from pea_jax.data.origins.record import Record


@dataclass(frozen=True)
class SetShard:
    """Yields a stretch of a set's rows; their numbers are the samples' names.

    Attributes:
      name: of the set, NAME or NAME/CONFIG:VERSION, or a folder.
      data_dir: where named sets lie.
      label: what the set calls itself, with its version.
      split: such as "train" or "train[:10%]".
      image: the feature of the picture.
      first: number of the first row.
      count: of rows.
    """

    name: str
    data_dir: str
    label: str
    split: str
    image: str
    first: int
    count: int

    @property
    def source(self) -> str:
        """What it is read from."""
        return f"{self.name}#{self.split}"

    def __call__(self) -> Iterator[Record]:
        """The records, in the order of the set."""
        rows = _rows(self.name, self.data_dir, self.split, self.image)
        for number in range(self.first, self.first + self.count):
            row = dict(rows[number])
            image, fault = picture.read(row.pop(self.image), None)
            yield Record(str(number), self.label, image, row, fault)


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
    for entry in where:
        name, _, named = entry.partition("#")
        reader = _reader(name, data_dir)
        count = len(_rows(name, data_dir, named or split, image))
        found += [
            SetShard(
                name,
                data_dir,
                reader.info.full_name,
                named or split,
                image,
                first,
                min(rows_per_shard, count - first),
            )
            for first in range(0, count, rows_per_shard)
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
    if not isinstance(features.get(image), tfds.features.Image):
        raise ValueError(f"{name}: no feature {image!r} of pictures, but {sorted(features)}")
    try:
        return reader.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise ValueError(f"{name}: expected files in ArrayRecord ({error})") from error
