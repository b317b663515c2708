"""Data sets of TensorFlow Datasets in ArrayRecord, including our own, by name or folder."""

import functools
import hashlib
from collections.abc import Sequence

import tensorflow_datasets as tfds

from pea_jax.data import paths
from pea_jax.data.origins import sets
from pea_jax.runtime import storage


def shards(
    where: Sequence[str], split: str, image: str, rows_per_shard: int, data_dir: str
) -> list[sets.SetShard]:
    """The shards of sets that TFDS has prepared.

    Args:
      where: NAME, NAME/CONFIG, NAME:VERSION or the folder of a version, each also with #SPLIT.
      split: default split.
      image: feature of the image.
      rows_per_shard: at most.
      data_dir: folder of the named sets.

    Raises:
      ValueError: no such set, split or feature, or files in another format than ArrayRecord.
    """
    return sets.shards(
        where, split, image, rows_per_shard, functools.partial(_open, data_dir, image)
    )


def _content(reader: tfds.core.DatasetBuilder) -> str:
    """The set's name and version, and for our sets a hash of the report, which covers the rows."""
    report = paths.report_file(storage.as_path(reader.data_path))
    digest = hashlib.sha256(report.read_bytes()).hexdigest() if report.is_file() else ""
    return f"{reader.info.full_name} {digest}"


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
def _open(data_dir: str, image: str, of: sets.Named) -> sets.OpenSet:
    reader = _reader(of.name, data_dir)
    features = reader.info.features
    if image not in features or not isinstance(features[image], tfds.features.Image):
        raise ValueError(f"{of.name}: no feature {image!r} of pictures, but {sorted(features)}")
    try:
        rows = reader.as_data_source(of.split, decoders={image: tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise ValueError(f"{of.name}: expected files in ArrayRecord ({error})") from error
    return sets.OpenSet(rows, _content(reader))
