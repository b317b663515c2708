"""Random access to the rows of a TFDS data set, and selection of rows without reading them."""

import hashlib
import json
import resource
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int32, Int64

from pea_jax.data import images, paths, schema
from pea_jax.runtime import storage
from pea_jax.runtime.storage import AnyPath

#: Open files, sockets and devices of a process besides those of a set.
_OTHER_FILES = 256


class DatasetError(ValueError):
    """The data set does not exist, or is not the expected one."""


def locate(data_dir: AnyPath | str, dataset: str) -> AnyPath:
    """The folder of the latest version of a data set.

    Args:
      data_dir: folder of all data sets.
      dataset: "name" or "name/version".

    Raises:
      DatasetError: there is no such set.
    """
    top = storage.as_path(data_dir) / dataset
    if paths.is_built(top):
        return top
    # Only version names: TFDS keeps unfinished sets in incomplete.*.
    found = [
        folder
        for folder in top.glob("*")
        if paths.is_built(folder) and tfds.core.Version.is_valid(folder.name)
    ]
    if not found:
        raise DatasetError(f"no data set {dataset!r} in {data_dir} (looked for {top}/VERSION)")
    return max(found, key=lambda folder: tfds.core.Version(folder.name))


class Source:
    """A split of a data set: `source[i]` is row i.

    Small to pickle. A copy in another process opens the files again without checking them.

    Args:
      folder: of the set, as `builder.build` returns it.
      split: such as "train".

    Raises:
      DatasetError: the folder has no such split, or was not written by `builder.build`.
    """

    #: Features that TFDS leaves encoded.
    _decoders: Mapping[str, Any] = {"image": tfds.decode.SkipDecoding()}

    def __init__(self, folder: AnyPath | str, split: str):
        self.folder = storage.as_path(folder)
        self.split = split
        self._open()

    def _open(self) -> None:
        self._check_files()
        if len(self.index) != len(self._records):
            raise DatasetError(
                f"{paths.index_file(self.folder, self.split)} is of {len(self.index)} rows, but "
                f"the split has {len(self._records)}"
            )

    def _check_files(self) -> None:
        """Report missing and truncated files first: errors of ArrayRecord are vague."""
        sizes = storage.sizes(self.folder)
        if paths.MARK not in sizes:
            raise DatasetError(f"{self.folder} is no data set: it has no {paths.MARK}")
        report = paths.report_file(self.folder)
        if report.name not in sizes:
            raise DatasetError(f"{self.folder} has no {report.name}: pea_jax did not build it")
        splits = json.loads(report.read_text("utf-8"))
        if self.split not in splits:
            raise DatasetError(f"{self.folder} has the splits {sorted(splits)}, not {self.split!r}")
        problems = [
            f"{name} is missing"
            if sizes.get(name) is None
            else f"{name} has {sizes[name]} bytes of {size}"
            for name, size in splits[self.split]["files"].items()
            if sizes.get(name) != size
        ]
        if problems:
            raise DatasetError(f"{self.folder} is damaged: {'; '.join(problems)}")

    @cached_property
    def index(self) -> np.ndarray:
        """A record of `schema.INDEX_DTYPE` per row."""
        file = paths.index_file(self.folder, self.split)
        index = _mapped(file)
        if index.dtype != schema.INDEX_DTYPE:
            raise DatasetError(f"{file} was written by another version of pea_jax: build it again")
        return index

    @cached_property
    def _records(self) -> Any:
        """The examples, as a sequence of TFDS."""
        reader = tfds.builder_from_directory(self.folder)
        if not storage.is_bucket(self.folder):
            self._allow_files(reader.info.splits[self.split].num_shards)
        return reader.as_data_source(self.split, decoders=self._decoders or None)

    def _allow_files(self, count: int) -> None:
        """Raise the limit of open files, usually 1024: ArrayRecord keeps all files open."""
        needed = count + _OTHER_FILES
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise DatasetError(
                f"{self.folder}: split {self.split} has {count} files, which are open while it is "
                f"read, and this process may open {hard}: allow {needed} (ulimit -n {needed}, in a "
                "container --ulimit nofile), or build it of fewer, larger parts (larger tars, a "
                "larger prepare.rows_per_shard)"
            )
        # Some systems have no hard limit but reject an infinite soft limit.
        limit = needed if hard == resource.RLIM_INFINITY else hard
        if soft != resource.RLIM_INFINITY and soft < limit:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))

    def __getstate__(self) -> dict:
        return {
            name: value for name, value in vars(self).items() if name not in ("index", "_records")
        }

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> schema.AnyRow:
        try:
            example = self._records[number]
        except RuntimeError as error:
            raise DatasetError(
                f"row {number} of split {self.split} in {self.folder} can't be read: {error}"
            ) from error
        return self._from_example(example)

    def _from_example(self, example: Mapping[str, Any]) -> Any:
        """The row of a TFDS example."""
        return schema.from_example(example)

    def picture(
        self, row: schema.Row, size: tuple[int, int], view: images.View = images.CENTRE
    ) -> dict[str, np.ndarray]:
        """A row's image for training: "pixels", and "time_ids" for SDXL's size conditioning.

        Args:
          row: of this source.
          size: height and width, pixels.
          view: crop and flip.

        Raises:
          CorruptImageError: the image is unreadable.
        """
        corner = images.corner(row.height, row.width, *size, view)
        return {
            "pixels": images.decode(row.image, *size, view),
            "time_ids": np.array([row.height, row.width, *corner, *size], np.int32),
        }

    @cached_property
    def digest(self) -> str:
        """16 hex digits that identify this split: a hash of its index and of its report, which
        contains a digest of the records.
        """
        digest = hashlib.sha256(np.ascontiguousarray(self.index).view(np.uint8).data)
        report = json.loads(paths.report_file(self.folder).read_text("utf-8"))[self.split]
        digest.update(json.dumps(report, sort_keys=True).encode())
        return digest.hexdigest()[:16]

    @cached_property
    def languages(self) -> tuple[str, ...]:
        """The languages of the captions, sorted."""
        return tuple(str(language) for language in np.unique(self.index["language"]))

    def select(
        self, *, native: bool, languages: Sequence[str] | None = None
    ) -> Int64[np.ndarray, "N"]:
        """Numbers of the native rows, or of the parallel rows, ascending.

        Args:
          native: native rows; otherwise rows with an English caption. No row is both.
          languages: of the captions; all by default.

        Raises:
          DatasetError: a language is not in the split.
        """
        chosen = self.index["native"] if native else self.index["parallel"]
        if languages is not None:
            unknown = sorted(set(languages) - set(self.languages))
            if unknown:
                raise DatasetError(
                    f"{self.folder}, split {self.split}: languages {unknown} are none of "
                    f"{list(self.languages)}"
                )
            chosen = chosen & np.isin(self.index["language"], list(languages))
        return np.flatnonzero(chosen)

    def sides(
        self, rows: Int64[np.ndarray, "N"]
    ) -> tuple[Int32[np.ndarray, "N"], Int32[np.ndarray, "N"]]:
        """Heights and widths of some rows' images, pixels."""
        return self.index["height"][rows], self.index["width"][rows]


def _mapped(file: AnyPath) -> np.ndarray:
    """The memory-mapped array of a file; for a bucket, of a temporary local copy."""
    if not storage.is_bucket(file):
        return np.load(file, mmap_mode="r")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / file.name
        storage.copy(file, copy)
        # The mapping survives the removal of the file.
        return np.load(copy, mmap_mode="r")
