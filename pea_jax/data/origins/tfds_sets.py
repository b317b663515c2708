"""Sets of TensorFlow Datasets in ArrayRecord, our own among them, by name or folder."""

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds

from pea_jax.data import paths
from pea_jax.data.origins import sets
from pea_jax.runtime import storage


def shards(
    where: Sequence[str], split: str, image: str, rows_per_shard: int, data_dir: str
) -> list[sets.SetShard]:
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
    found, read = [], functools.partial(_open, data_dir, image)
    for each in sets.named(where, split):
        content = _content(_reader(each.name, data_dir))
        rows, _ = read(each)
        found += [
            sets.SetShard(each, content, image, *stretch, read)
            for stretch in sets.stretches(len(rows), rows_per_shard)
        ]
    return found


def _content(reader: tfds.core.DatasetBuilder) -> str:
    """What tells a set from another of that name: its version; of our own, its report, which holds
    the digest of the rows.
    """
    report = paths.report_file(storage.as_path(reader.data_path))
    told = hashlib.sha256(report.read_bytes()).hexdigest() if report.is_file() else ""
    return f"{reader.info.full_name} {told}"


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
def _open(data_dir: str, image: str, of: sets.Named) -> tuple[Any, list]:
    """A split of a set at random access, its pictures not decoded; and no folder of pictures."""
    name, split = of.name, of.split
    reader = _reader(name, data_dir)
    features = reader.info.features
    if image not in features or not isinstance(features[image], tfds.features.Image):
        raise ValueError(f"{name}: no feature {image!r} of pictures, but {sorted(features)}")
    try:
        return reader.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()}), []
    except NotImplementedError as error:
        raise ValueError(f"{name}: expected files in ArrayRecord ({error})") from error
