"""Writes rows as a TFDS data set (ArrayRecord), without TensorFlow.

A set appears whole or not at all: it is written into a folder beside its place and renamed. Next
to the records of a split lies its index, one small record a row, from which the rows of a language
and kind are chosen without reading any image.
"""

import collections
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from pea_jax import storage
from pea_jax.data import schema
from pea_jax.storage import AnyPath

#: A function that yields the rows of one shard (one file), and what it found in place of rows.
Shard = Callable[[], Iterable[schema.Row | schema.Rejected]]

#: Of the layout of a set: features, index, report.
VERSION = "1.0.0"
_EXAMPLES = 5
#: The file that is written last: with it a set is whole.
_MARK = "dataset_info.json"


def index_file(folder: AnyPath, split: str) -> AnyPath:
    """Where a split's index lies."""
    return folder / f"index-{split}.npy"


def folder_of(data_dir: AnyPath | str, name: str) -> AnyPath:
    """Where `build` puts a set of this name."""
    return storage.as_path(data_dir) / name / VERSION


def is_built(folder: AnyPath) -> bool:
    """Whether a folder holds a data set."""
    return (folder / _MARK).is_file()


def report_file(folder: AnyPath) -> AnyPath:
    """Where each split's counts of kept and rejected rows, and the sizes of its files, lie."""
    return folder / "report.json"


class _ShardWriter:
    """Yields one shard's examples to TFDS; leaves its index and rejections in `part`, a prefix.

    What a shard leaves goes through files, so that shards may be written by several processes.
    """

    def __init__(self, rows: Shard, part: Path):
        self.rows = rows
        self.part = part

    def __call__(self) -> Iterator[tuple[str, dict]]:
        index, rejected = [], collections.defaultdict(list)
        for row in self.rows():
            reason = row.reason if isinstance(row, schema.Rejected) else schema.problem(row)
            if reason is not None:
                rejected[reason].append(row.key)
                continue
            index.append(schema.index_record(row))
            yield row.key, schema.to_example(row)
        np.save(self.part.with_suffix(".npy"), np.array(index, schema.INDEX_DTYPE))
        self.part.with_suffix(".json").write_text(json.dumps(rejected))


class _Builder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """The one builder of the project. Shards keep their order; shuffling happens at reading."""

    def __init__(
        self, name: str, description: str, splits: Mapping[str, Sequence[Shard]], **kwargs
    ):
        self.name = name
        self.VERSION = tfds.core.Version(VERSION)
        self._description = description
        self._splits = splits
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._description,
            features=schema.features(),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, dl_manager):
        del dl_manager
        parts = Path(self.data_path) / "parts"
        parts.mkdir()
        return {
            split: [
                _ShardWriter(shard, parts / f"{split}-{number:05d}")
                for number, shard in enumerate(shards)
            ]
            for split, shards in self._splits.items()
        }

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        super()._download_and_prepare(dl_manager, download_config)
        folder = Path(self.data_path)
        report = {split: _gather(folder, split) for split in self._splits}
        for split, info in self.info.splits.items():
            files = {path.name: path.stat().st_size for path in map(Path, info.filepaths)}
            report[split]["files"] = files
        shutil.rmtree(folder / "parts")
        report_file(folder).write_text(json.dumps(report, indent=2, ensure_ascii=False))

    # TFDS prints two lines here, whatever the log level.
    def _log_download_bytes(self) -> None:
        pass

    def _log_download_done(self) -> None:
        pass


def _gather(folder: Path, split: str) -> dict:
    """Joins the parts of a split's shards: writes its index, returns its report.

    Raises:
      ValueError: no row was kept, or two rows share a key.
    """
    parts = sorted((folder / "parts").glob(f"{split}-?????.npy"))
    index = np.concatenate([np.load(part) for part in parts])
    rejected = collections.defaultdict(list)
    for part in parts:
        for reason, keys in json.loads(part.with_suffix(".json").read_text()).items():
            rejected[reason] += keys
    counts = {reason: len(keys) for reason, keys in sorted(rejected.items())}
    if not len(index):
        raise ValueError(f"split {split!r} has no row to keep (rejected: {counts})")
    _, first, times = np.unique(index["key_hash"], return_index=True, return_counts=True)
    if (times > 1).any():
        raise ValueError(
            f"split {split!r}: {int((times > 1).sum())} keys occur more than once, "
            f"first that of row {int(first[times > 1].min())}"
        )
    np.save(index_file(folder, split), index)
    return {
        "kept": len(index),
        "rejected": counts,
        "examples": {reason: keys[:_EXAMPLES] for reason, keys in sorted(rejected.items())},
    }


def build(
    data_dir: AnyPath | str,
    name: str,
    splits: Mapping[str, Sequence[Shard]],
    description: str = "",
) -> AnyPath:
    """Writes a data set, unless it is there already.

    Rows without a caption, without an English caption where one is needed, without a language or
    an image are left out and counted in ``report.json``.

    Args:
      data_dir: holds all data sets.
      name: of the data set, lower case with underscores.
      splits: by name, for each shard (one file; its examples are held in memory while it is
        written, so at most some hundred MB) a function that yields its rows.
      description: goes into the set's dataset_info.json.

    Returns:
      The folder of the finished set: data_dir/name/version.

    Raises:
      ValueError: a split keeps no row, two rows of a split share a key, or the set's place is
        taken by something else.
    """
    folder = folder_of(data_dir, name)
    if storage.is_bucket(folder):
        if not is_built(folder):
            # ArrayRecord reads from buckets, but writes to disks alone.
            with tempfile.TemporaryDirectory() as draft:
                made = build(draft, name, splits, description)
                storage.upload(made, folder, last=_MARK)
        return folder
    builder = _Builder(name, description, splits, data_dir=str(folder.parent.parent))
    try:
        builder.download_and_prepare()
    except OSError:
        # Two processes built the same set at once, and the other was first to put it in its place.
        if not is_built(folder):
            raise
    if not is_built(folder):
        raise ValueError(f"{folder} is in the way: it holds no data set, remove it")
    return folder
