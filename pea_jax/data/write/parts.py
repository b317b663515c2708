"""Parts of a data set that is being built: one for each shard, and one for each that was thinned.

A part is a folder that appears whole or not at all and is never changed, so that two builds of the
same set may share it, and the next one goes on from it.
"""

import abc
import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from pea_jax.data import schema
from pea_jax.runtime import storage
from pea_jax.runtime.storage import AnyPath

#: A function that yields the rows of one shard (one file), and what it found in place of rows.
Shard = Callable[[], Iterable[schema.Described | schema.Rejected]]

#: Of all rows with one key the first is kept.
REPEATED_KEY = "key occurs more than once"

#: What a part holds: its rows, a record of `schema.INDEX_DTYPE` and the key of each, and what
#: became of the shard; the last is written last, and with it the part is whole.
RECORDS, INDEX, KEYS, REPORT = "records.array_record", "index.npy", "keys.jsonl", "report.json"

_EXAMPLES = 5
_CHUNK = 4096


@dataclass(frozen=True)
class Counts:
    """Rows so far: how many are kept, and how many were rejected for each reason."""

    kept: int
    rejected: Mapping[str, int]


@dataclass
class Report:
    """What became of the rows of a part, or of a split.

    Attributes:
      kept: rows.
      rejected: rows by reason.
      examples: the first keys of each reason.
      size: of the records in bytes.
      digest: of the records, SHA-256; of a split it is not known here.
    """

    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    size: int = 0
    digest: str = ""

    def reject(self, reason: str, key: str) -> None:
        """Count a row that is not kept."""
        self.rejected[reason] += 1
        self._show(reason, [key])

    def add(self, other: "Report") -> None:
        """Count what comes after it, too."""
        self.kept += other.kept
        self.size += other.size
        self.rejected.update(other.rejected)
        for reason, keys in other.examples.items():
            self._show(reason, keys)

    def _show(self, reason: str, keys: Sequence[str]) -> None:
        shown = self.examples.setdefault(reason, [])
        shown += keys[: _EXAMPLES - len(shown)]

    @property
    def counts(self) -> Counts:
        """Kept and rejected rows."""
        return Counts(self.kept, dict(self.rejected))


@dataclass(frozen=True)
class Part:
    """A place for a part; small to pickle.

    Attributes:
      top: the folder of all parts, which must be there.
      name: of the part's own folder.
    """

    top: str
    name: str

    @property
    def folder(self) -> AnyPath:
        """Where the part lies when it is whole."""
        return _path(self.top) / self.name

    def is_done(self) -> bool:
        """Whether the part is whole."""
        return (self.folder / REPORT).is_file()

    def report(self) -> Report:
        """What became of its rows."""
        told = json.loads((self.folder / REPORT).read_text(encoding="utf-8"))
        return Report(**told | {"rejected": Counter(told["rejected"])})

    def index(self) -> np.ndarray:
        """A record of `schema.INDEX_DTYPE` for each row."""
        (index,) = indices([self])
        return index

    def keys(self) -> list[str]:
        """The key of each row."""
        return [json.loads(line) for line in (self.folder / KEYS).read_text().splitlines()]

    def remove_drafts(self) -> None:
        """Remove this process's: when it is told to end, it may be just making or removing one."""
        _remove_drafts(_path(self.top), lambda process: process == os.getpid())

    @contextlib.contextmanager
    def appearing(self) -> Iterator[Path]:
        """A local folder to write to, which becomes the part at the end, or vanishes with an error.

        Where two write the same part, the first counts on a disk, the last in a bucket.
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


def indices(made: Iterable[Part]) -> Iterator[np.ndarray]:
    """The index of each part, in order.

    Several are read at once, but one thread makes arrays of them: Python 3.11 now and then raises
    a SystemError where several parse their headers (cpython's gh-106905).
    """
    for content in storage.each(lambda part: (part.folder / INDEX).read_bytes(), made):
        yield np.load(io.BytesIO(content))


@functools.cache
def _path(top: str) -> AnyPath:
    return storage.as_path(top)


@contextlib.contextmanager
def drafts(top: AnyPath, name: str) -> Iterator[Path]:
    """A local folder to write to: beside what it becomes, or where the other end is a bucket in the
    folder for temporary files. What is left in it at the end is removed.
    """
    place = None if storage.is_bucket(top) else top
    prefix = f".pea_jax-{name}.{socket.gethostname()}.{os.getpid()}."
    with tempfile.TemporaryDirectory(dir=place, prefix=prefix) as draft:
        # One level down: the draft itself is for its owner's eyes alone.
        folder = Path(draft) / "folder"
        folder.mkdir()
        yield folder


def remove_orphans(top: AnyPath) -> None:
    """Remove the drafts of processes of this host that are gone: they were killed."""
    _remove_drafts(top, lambda process: not _runs(process))


def _remove_drafts(top: AnyPath, of: Callable[[int], bool]) -> None:
    place = Path(tempfile.gettempdir()) if storage.is_bucket(top) else top
    for name in storage.held(place):
        named = re.fullmatch(r"\.pea_jax-[\w-]+\.(.+)\.(\d+)\.\w+", name)
        if named and named[1] == socket.gethostname() and of(int(named[2])):
            shutil.rmtree(place / name, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def sync(folder: Path) -> None:
    """Have the files of a folder on the disk before it gets its name."""
    for name in storage.held(folder):
        with (folder / name).open("rb") as stream:
            os.fsync(stream.fileno())


@contextlib.contextmanager
def faults() -> Iterator[None]:
    """Tell in one line what ArrayRecord tells by a RuntimeError, such as of a disk that is full."""
    try:
        yield
    except RuntimeError as error:
        raise storage.StorageError(" ".join(str(error).split())) from error


@contextlib.contextmanager
def writing(file: Path) -> Iterator[Callable[[bytes], None]]:
    """A function that writes one record to an ArrayRecord file.

    Raises:
      StorageError: the file can't be written, or does not hold what was written.
    """
    # Groups of one, as TFDS writes them: rows are read at random.
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
class Job(abc.ABC):
    """Makes a part, unless it is there."""

    part: Part

    def __call__(self) -> None:
        """Do it."""
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
    def _write(self, folder: Path) -> Report:
        """Write records, index and keys."""


@dataclass(frozen=True)
class Making(Job):
    """Makes the part of a shard, row by row. Of rows with one key the first good one is kept."""

    shard: Shard
    form: schema.Form = schema.PICTURES

    def _write(self, folder: Path) -> Report:
        report = Report()
        np.save(folder / INDEX, _write_rows(self.shard(), folder, report, self.form))
        return report


def _write_rows(
    rows: Iterable[schema.Described | schema.Rejected],
    folder: Path,
    report: Report,
    form: schema.Form,
) -> np.ndarray:
    """Writes records and keys; returns the index."""
    features, seen = form.features(), set()
    serializer = tfds.core.ExampleSerializer(features.get_serialized_info())
    with writing(folder / RECORDS) as write, (folder / KEYS).open("w") as keys:

        def kept() -> Iterator[tuple]:
            for row in rows:
                reason = row.reason if isinstance(row, schema.Rejected) else form.problem(row)
                if reason is None and row.key in seen:
                    reason = REPEATED_KEY
                if reason is not None:
                    report.reject(reason, row.key)
                    continue
                record = schema.index_record(row)
                example = serializer.get_tf_example(features.encode_example(form.to_example(row)))
                # The same bytes whoever makes the part, and when.
                write(example.SerializeToString(deterministic=True))
                keys.write(json.dumps(row.key) + "\n")
                seen.add(row.key)
                report.kept += 1
                yield record

        records, chunks = kept(), [np.zeros(0, schema.INDEX_DTYPE)]
        while chunk := list(itertools.islice(records, _CHUNK)):
            chunks.append(np.array(chunk, schema.INDEX_DTYPE))
    return np.concatenate(chunks)
