"""Parts of a data set under construction: one per input shard, plus deduplicated copies.

A part is a folder that appears atomically and never changes afterwards. Two builds of one set can
therefore share it, and a restarted build reuses it.
"""

import abc
import contextlib
import functools
import hashlib
import io
import json
import os
import re
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from pea_jax.data import schema
from pea_jax.runtime import storage
from pea_jax.runtime.storage import AnyPath

#: A function that yields the rows of one input shard (one file), and rejections in their places.
Shard = Callable[[], Iterable[schema.AnyRow | schema.Rejected]]

#: The reason for rejecting all rows with a repeated key but the first.
REPEATED_KEY = "key occurs more than once"

#: Files of a part: its rows, a record of `schema.INDEX_DTYPE` and the key of each row, and the
#: `PartReport`. The report is written last and marks the part as complete.
RECORDS, INDEX, KEYS, REPORT = "records.array_record", "index.npy", "keys.jsonl", "report.json"

_EXAMPLES = 5


@dataclass
class PartReport:
    """Counts of the kept and rejected rows of a part, or of a split.

    Attributes:
      kept: number of rows.
      rejected: number of rows per reason.
      examples: the first keys per reason.
      size: of the records, bytes.
      digest: SHA-256 of the records; empty for a split.
    """

    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    size: int = 0
    digest: str = ""

    def reject(self, reason: str, key: str) -> None:
        """Count a rejected row."""
        self.rejected[reason] += 1
        self._add_examples(reason, [key])

    def add(self, other: "PartReport") -> None:
        """Add the counts of the part that follows."""
        self.kept += other.kept
        self.size += other.size
        self.rejected.update(other.rejected)
        for reason, keys in other.examples.items():
            self._add_examples(reason, keys)

    def _add_examples(self, reason: str, keys: Sequence[str]) -> None:
        examples = self.examples.setdefault(reason, [])
        examples += keys[: _EXAMPLES - len(examples)]


@dataclass(frozen=True)
class ShardPart:
    """The location of a part; small to pickle.

    Attributes:
      top: the existing folder of all parts.
      name: of the part's own folder.
    """

    top: str
    name: str

    @property
    def folder(self) -> AnyPath:
        """The folder of the complete part."""
        return _path(self.top) / self.name

    def is_done(self) -> bool:
        """Whether the part is complete."""
        return (self.folder / REPORT).is_file()

    def report(self) -> PartReport:
        """The counts of its rows."""
        values = json.loads((self.folder / REPORT).read_text(encoding="utf-8"))
        return PartReport(**values | {"rejected": Counter(values["rejected"])})

    def index(self) -> np.ndarray:
        """A record of `schema.INDEX_DTYPE` per row."""
        (index,) = indices([self])
        return index

    def keys(self) -> list[str]:
        """The key of each row."""
        return [json.loads(line) for line in (self.folder / KEYS).read_text().splitlines()]

    def remove_drafts(self) -> None:
        """Remove the drafts of this process, which may be writing or removing one when it ends."""
        _remove_drafts(_path(self.top), lambda process: process == os.getpid())

    @contextlib.contextmanager
    def appearing(self) -> Iterator[Path]:
        """A local draft folder that becomes the part on success and is removed on an error.

        If two processes write the same part, the first wins on a disk and the last in a bucket.
        """
        with drafts(_path(self.top), self.name) as draft:
            yield draft
            if storage.is_bucket(self.folder):
                for name in sorted(storage.held(draft), key=lambda name: (name == REPORT, name)):
                    storage.copy(draft / name, self.folder / name)
                return
            sync(draft)
            try:
                draft.replace(self.folder)
            except OSError:
                if not self.is_done():
                    raise


def indices(parts: Iterable[ShardPart]) -> Iterator[np.ndarray]:
    """The index of each part, in order.

    Several files are read concurrently, but one thread parses them: concurrent parsing of array
    headers can raise a SystemError in Python 3.11 (cpython's gh-106905).
    """
    for content in storage.each(lambda part: (part.folder / INDEX).read_bytes(), parts):
        yield np.load(io.BytesIO(content))


@functools.cache
def _path(top: str) -> AnyPath:
    return storage.as_path(top)


@contextlib.contextmanager
def drafts(top: AnyPath, name: str) -> Iterator[Path]:
    """A local folder for files that are not complete yet; removed at the end.

    It is created in `top`, so that it can be renamed into place. For a bucket, it is created in the
    system's folder for temporary files.
    """
    parent = None if storage.is_bucket(top) else top
    prefix = f".pea_jax-{name}.{socket.gethostname()}.{os.getpid()}."
    with tempfile.TemporaryDirectory(dir=parent, prefix=prefix) as draft:
        # A subfolder, because the temporary folder itself is readable by its owner only.
        folder = Path(draft) / "folder"
        folder.mkdir()
        yield folder


def remove_orphans(top: AnyPath) -> None:
    """Remove the drafts of killed processes of this host."""
    _remove_drafts(top, lambda process: not _is_running(process))


def _remove_drafts(top: AnyPath, condition: Callable[[int], bool]) -> None:
    parent = Path(tempfile.gettempdir()) if storage.is_bucket(top) else top
    for name in storage.held(parent):
        match = re.fullmatch(r"\.pea_jax-[\w-]+\.(.+)\.(\d+)\.\w+", name)
        if match and match[1] == socket.gethostname() and condition(int(match[2])):
            shutil.rmtree(parent / name, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def sync(folder: Path) -> None:
    """Flush the files of a folder to the disk before the folder is renamed."""
    for name in storage.held(folder):
        with (folder / name).open("rb") as stream:
            os.fsync(stream.fileno())


@contextlib.contextmanager
def faults() -> Iterator[None]:
    """Turn the RuntimeError that ArrayRecord raises, e.g. on a full disk, into a StorageError."""
    try:
        yield
    except RuntimeError as error:
        raise storage.StorageError(" ".join(str(error).split())) from error


@contextlib.contextmanager
def writing(file: Path) -> Iterator[Callable[[bytes], None]]:
    """A function that writes one record to an ArrayRecord file.

    Raises:
      StorageError: the file cannot be written, or its record count is wrong afterwards.
    """
    # Groups of one record, as TFDS writes them, because rows are read at random.
    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
    written = 0

    def write(record: bytes) -> None:
        nonlocal written
        with faults():
            writer.write(record)
        written += 1

    try:
        yield write
    except BaseException:
        with contextlib.suppress(RuntimeError):
            writer.close()
        raise
    with faults():
        writer.close()
        with contextlib.closing(array_record_module.ArrayRecordReader(str(file))) as reader:
            held = reader.num_records()
    if held != written:
        raise storage.StorageError(f"{file} holds {held} of {written} records")


@dataclass(frozen=True)
class PartJob(abc.ABC):
    """Writes a part, unless it exists."""

    part: ShardPart

    def __call__(self) -> None:
        """Do the job."""
        if self.part.is_done():
            return
        with self.part.appearing() as folder:
            report = self._write(folder)
            report.size = (folder / RECORDS).stat().st_size
            with (folder / RECORDS).open("rb") as records:
                report.digest = hashlib.file_digest(records, "sha256").hexdigest()
            text = json.dumps(vars(report), ensure_ascii=False)
            (folder / REPORT).write_text(text, encoding="utf-8")

    @abc.abstractmethod
    def _write(self, folder: Path) -> PartReport:
        """Write records, index and keys."""


@dataclass(frozen=True)
class BuildPart(PartJob):
    """Writes the part of an input shard, row by row. Keeps the first good row of each key."""

    shard: Shard
    row_format: schema.RowFormat = schema.PICTURES

    def _write(self, folder: Path) -> PartReport:
        report, features, seen = PartReport(), self.row_format.features(), set()
        serializer = tfds.core.ExampleSerializer(features.get_serialized_info())

        def records() -> Iterator[tuple]:
            for row in self.shard():
                rejected = isinstance(row, schema.Rejected)
                reason = row.reason if rejected else schema.problem(row)
                if reason is None and row.key in seen:
                    reason = REPEATED_KEY
                if reason is not None:
                    report.reject(reason, row.key)
                    continue
                record = schema.index_record(row)
                example = features.encode_example(self.row_format.to_example(row))
                example = serializer.get_tf_example(example)
                # Deterministic: a part has the same bytes whoever writes it.
                write(example.SerializeToString(deterministic=True))
                keys.write(json.dumps(row.key) + "\n")
                seen.add(row.key)
                report.kept += 1
                yield record

        with writing(folder / RECORDS) as write, (folder / KEYS).open("w") as keys:
            np.save(folder / INDEX, np.fromiter(records(), schema.INDEX_DTYPE))
        return report
