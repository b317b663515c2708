"""Where files lie: on local disks, and in buckets by names such as gs://bucket/runs/x.

A local path stays a pathlib.Path. A name in a bucket is an epath.Path, which has its methods but
not its guarantees: an object cannot be appended to, a folder is there when something is in it, and
renaming is copying. What needs one of these is written here for both.
"""

import contextlib
import importlib.util
import itertools
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from etils import epath

#: What every function of the package that takes a workdir or an output folder accepts.
AnyPath = Path | epath.Path

BUCKETS = "gs://"

#: A bucket's object that grows by lines is written anew, at most this often in seconds.
REWRITE_SECONDS = 30.0

#: Files of one kind that are read or copied at the same time.
_AT_ONCE = 16

#: Packages whose errors are of the way to a bucket.
_CLIENTS = ("gcsfs", "aiohttp", "google", "requests", "urllib3")

#: tensorstore tells of a storage that fails by a status in a ValueError.
_STATUS = re.compile(
    r"\b(UNAVAILABLE|PERMISSION_DENIED|UNAUTHENTICATED|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED"
    r"|ABORTED|CANCELLED)\b|No space left on device|File too large|Quota exceeded"
    r"|Permission denied|Input/output error"
)


class StorageError(OSError):
    """A disk or a bucket that cannot be read or written now; what it holds may be in order."""


def as_path(name: str | AnyPath) -> AnyPath:
    """The path that a name stands for; "~" is the home folder. A bucket must be there.

    Raises:
      ValueError: a URL of another kind than gs://bucket/..., or no package to reach buckets with.
      StorageError: the bucket cannot be reached, or not with the credentials at hand.
    """
    if not re.match(r"\w+://", str(name)):
        return Path(name).expanduser()
    if not str(name).startswith(BUCKETS):
        raise ValueError(f"{name}: expected a local path or {BUCKETS}BUCKET/...")
    if importlib.util.find_spec("gcsfs") is None:
        raise ValueError(f"{name}: buckets take gcsfs: pip install 'pea-jax[gcs]'")
    _configure()
    path = epath.Path(str(name))
    with faults():
        # Of a bucket that cannot be reached, is_dir() would only say no.
        path.exists()
        if not _bucket(path).exists():
            raise StorageError(f"{_bucket(path)}: no such bucket, or none that may be listed")
    return path


def local(name: str | Path, what: str) -> Path:
    """The path of something that is read from local disks alone.

    Raises:
      ValueError: it is in a bucket.
    """
    if "://" in str(name):
        raise ValueError(f"{what}: expected a local path, got {name}: copy it, or mount the bucket")
    return Path(name).expanduser()


def is_bucket(path: AnyPath) -> bool:
    """Whether `path` is a name in a bucket."""
    return str(path).startswith(BUCKETS)


def replace_text(file: AnyPath, text: str) -> None:
    """`replace_bytes` in UTF-8."""
    replace_bytes(file, text.encode())


def replace_bytes(file: AnyPath, content: bytes) -> None:
    """`content` as `file`: a reader, or a kill, sees the old file or the new one, never a part.

    Raises:
      OSError: names the file; the old one stays.
    """
    if is_bucket(file):
        # An object appears when it is whole.
        with faults():
            file.write_bytes(content)
        return
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with _naming(file):
            with draft.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


class Growing:
    """A file that grows piece by piece, made anew; a context manager.

    On a local disk each piece is handed to the operating system at once, and survives a kill of
    this process. In a bucket the whole object is written again: by `flush`, and by `write` when
    REWRITE_SECONDS have passed.

    Args:
      file: its folder must be there.
      begin: what it holds first.
    """

    def __init__(self, file: AnyPath, begin: bytes = b""):
        self._file, self._written = file, 0.0
        self._pieces, self._stream = [begin], None
        self._flushed = 0
        if is_bucket(file):
            self.flush()
        else:
            replace_bytes(file, begin)
            self._stream = file.open("ab", buffering=0)

    def __enter__(self) -> "Growing":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def write(self, piece: bytes) -> None:
        """Add `piece`.

        Raises:
          OSError: names the file.
        """
        if self._stream is not None:
            with _naming(self._file):
                self._stream.write(piece)
            return
        self._pieces.append(piece)
        if time.monotonic() - self._written > REWRITE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Let readers see all that was written."""
        if self._stream is None and len(self._pieces) > self._flushed:
            self._pieces = [b"".join(self._pieces)]
            replace_bytes(self._file, self._pieces[0])
            self._flushed, self._written = 1, time.monotonic()

    def close(self) -> None:
        """Flush; nothing is written any more."""
        if self._stream is not None:
            self._stream.close()
        else:
            self.flush()


@contextlib.contextmanager
def appearing(output: AnyPath) -> Iterator[Path]:
    """A local folder to write to that becomes `output` at the end, or vanishes with an error.

    On a local disk it is renamed. Into a bucket it is copied file by file; what an error or Ctrl-C
    leaves there of it is removed, if the bucket still answers.
    """
    bucket = is_bucket(output)
    if not bucket:
        output.parent.mkdir(parents=True, exist_ok=True)
    place = None if bucket else output.parent
    with tempfile.TemporaryDirectory(dir=place, prefix=f".{output.name}.") as draft:
        # One level down: the draft itself is for its owner's eyes alone.
        folder = Path(draft) / "folder"
        folder.mkdir()
        yield folder
        if bucket:
            upload(folder, output)
        else:
            folder.replace(output)


def move(source: AnyPath, target: AnyPath) -> None:
    """Give the folder `source` the name `target`, which is free; its parent is made."""
    if not is_bucket(source):
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
        return
    with faults():
        # Renaming is copying, so what is cut off here leaves `source` whole.
        for file in files(source):
            copy(file, target / file.relative_to(source))
        source.rmtree()


def copy(source: AnyPath, target: AnyPath) -> None:
    """Copy a file over `target`. In a bucket it appears when it is whole; from one place in buckets
    to another it is copied by the storage, and does not come through here.
    """
    if not (is_bucket(source) or is_bucket(target)):
        shutil.copyfile(source, target)
        return
    import fsspec

    client = fsspec.filesystem("gs")
    with faults():
        if not is_bucket(source):
            client.put_file(str(source), str(target))
        elif not is_bucket(target):
            client.get_file(str(source), str(target))
        else:
            client.cp_file(str(source), str(target))


def files(folder: AnyPath) -> list[AnyPath]:
    """Every file under `folder`, sorted."""
    if not is_bucket(folder):
        return sorted(file for file in folder.rglob("*") if file.is_file())
    found = []
    for entry in folder.iterdir():
        if entry.name:  # the folder itself, where someone made an object of it
            found += files(entry) if entry.is_dir() else [entry]
    return sorted(found)


def explain(error: BaseException) -> str | None:
    """What an error of the way to a disk or bucket says, in one line; None for any other error."""
    told = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, StorageError):
        return told
    if isinstance(error, OSError) and told.startswith("Forbidden: "):  # of gcsfs
        return f"permission denied: {told.removeprefix('Forbidden: ')}"
    if type(error).__module__.split(".")[0] in _CLIENTS:
        return f"the bucket cannot be reached or refuses: {told}"
    if isinstance(error, OSError) and error.errno is not None:
        if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            return None
        return ": ".join(str(part) for part in (error.filename, error.strerror) if part)
    if isinstance(error, ValueError) and _STATUS.search(told):
        return told
    return None


@contextlib.contextmanager
def faults() -> Iterator[None]:
    """Turn the errors of storage clients into StorageError; others pass.

    Raises:
      StorageError: one line.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise
        told = explain(error)
        if told is None or isinstance(error, StorageError):
            raise
        raise StorageError(told) from error


def _bucket(path: epath.Path) -> epath.Path:
    return epath.Path(BUCKETS + str(path).removeprefix(BUCKETS).split("/")[0])


def _configure() -> None:
    """Before a bucket is first opened: no stale listings, and one client whatever is installed."""
    import fsspec

    # Orbax writes through tensorstore, and other hosts write too: a listing that is kept is wrong.
    for protocol in ("gs", "gcs"):
        fsspec.config.conf.setdefault(protocol, {})["use_listings_cache"] = False
    os.environ.setdefault("EPATH_USE_TF", "false")


@contextlib.contextmanager
def _naming(file: AnyPath) -> Iterator[None]:
    """Writing to an open file fails without telling which: "No space left on device"."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(file)) from error


def upload(folder: Path, output: AnyPath) -> None:
    """Copy a local folder into a bucket; what an error leaves there of it is removed.

    Args:
      folder: of files.
      output: its name in the bucket.

    Raises:
      StorageError: one line.
    """
    try:
        with faults():
            for file in files(folder):
                copy(file, output / str(file.relative_to(folder)))
    except BaseException:
        with contextlib.suppress(Exception):
            output.rmtree(missing_ok=True)
        raise


def each(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """`function` of each item, in order; several at once, because a bucket takes its time."""
    items = iter(items)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while some := list(itertools.islice(items, _AT_ONCE)):
            yield from pool.map(function, some)


def size(file: AnyPath) -> int:
    """Bytes of a file."""
    return file.stat().length if is_bucket(file) else file.stat().st_size


def held(folder: AnyPath) -> Iterable[str]:
    """Names of what lies in `folder`; none where it is missing."""
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def sizes(folder: AnyPath) -> dict[str, int | None]:
    """Names of what lies in `folder`, with the bytes of files, None for folders; none if missing.

    One request to a bucket for many files.
    """
    if not is_bucket(folder):
        if not folder.is_dir():
            return {}
        with os.scandir(folder) as entries:
            return {each.name: None if each.is_dir() else each.stat().st_size for each in entries}
    import fsspec

    top = str(folder).removeprefix(BUCKETS).rstrip("/")
    with faults():
        try:
            found = fsspec.filesystem("gs").ls(top, detail=True)
        except FileNotFoundError:
            return {}
    named = {each["name"].removeprefix(f"{top}/").rstrip("/"): each for each in found}
    return {
        name: None if each["type"] == "directory" else each["size"]
        for name, each in named.items()
        if name and "/" not in name
    }
