"""Files on local disks, and in buckets under names such as gs://bucket/runs/x.

A local path is a pathlib.Path. A name in a bucket is an epath.Path, which has the same methods
without the same guarantees: an object cannot be appended to, a folder exists while it has content,
and renaming is copying. The functions here hide these differences.
"""

import contextlib
import importlib.util
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from etils import epath

#: A workdir, an output folder, or a file in one.
AnyPath = Path | epath.Path

BUCKETS = "gs://"

#: Files of one kind that are read or copied at the same time.
_AT_ONCE = 16

#: Packages whose errors mean that a bucket cannot be reached.
_CLIENTS = ("gcsfs", "aiohttp", "google", "requests", "urllib3")

#: The status by which a ValueError of tensorstore reports a failing storage.
_STATUS = re.compile(
    r"\b(UNAVAILABLE|PERMISSION_DENIED|UNAUTHENTICATED|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED"
    r"|ABORTED|CANCELLED)\b|No space left on device|File too large|Quota exceeded"
    r"|Permission denied|Input/output error"
)


class StorageError(OSError):
    """A disk or a bucket that cannot be read or written now; its content may be intact."""


def as_path(name: str | AnyPath) -> AnyPath:
    """The path of a name; "~" is the home folder. A bucket must exist.

    Raises:
      ValueError: a URL that is not gs://bucket/..., or gcsfs is not installed.
      StorageError: the bucket cannot be reached, or refuses the credentials.
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
        # is_dir() would return False for a bucket that cannot be reached.
        path.exists()
        if not _bucket(path).exists():
            raise StorageError(f"{_bucket(path)}: no such bucket, or none that may be listed")
    return path


def local(name: str | Path, what: str) -> Path:
    """The path of something that only local disks may hold.

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
    """Write `content` to `file`: readers see the old file or the new one, even after a kill.

    Raises:
      OSError: names the file; the old one stays.
    """
    if is_bucket(file):
        # An object becomes visible when it is complete.
        with faults():
            file.write_bytes(content)
        return
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with naming(file):
            with draft.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def appearing(output: AnyPath) -> Iterator[Path]:
    """A local folder that becomes `output` at the end, and is deleted on an error.

    On a local disk it is renamed. Into a bucket it is copied file by file; after an error or Ctrl-C
    the partial copy is removed, if the bucket still answers.
    """
    bucket = is_bucket(output)
    if not bucket:
        output.parent.mkdir(parents=True, exist_ok=True)
    place = None if bucket else output.parent
    with tempfile.TemporaryDirectory(dir=place, prefix=f".{output.name}.") as draft:
        # One level down: only the owner may read the temporary folder itself.
        folder = Path(draft) / "folder"
        folder.mkdir()
        yield folder
        if bucket:
            upload(folder, output)
        else:
            folder.replace(output)


def move(source: AnyPath, target: AnyPath) -> None:
    """Rename the folder `source` to `target`, which must not exist; makes its parent."""
    if not is_bucket(source):
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
        return
    with faults():
        # Copy first, then delete: an interruption leaves `source` intact.
        for file in files(source):
            copy(file, target / file.relative_to(source))
        source.rmtree()


def copy(source: AnyPath, target: AnyPath) -> None:
    """Copy a file over `target`.

    An object in a bucket becomes visible when it is complete. The storage itself copies from bucket
    to bucket.
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
        if entry.name:  # empty for an object with the folder's own name
            found += files(entry) if entry.is_dir() else [entry]
    return sorted(found)


def explain(error: BaseException) -> str | None:
    """One line on a failure to reach a disk or a bucket; None for any other error."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, StorageError):
        return message
    if isinstance(error, OSError) and message.startswith("Forbidden: "):  # of gcsfs
        return f"permission denied: {message.removeprefix('Forbidden: ')}"
    if type(error).__module__.split(".")[0] in _CLIENTS:
        return f"the bucket cannot be reached or refuses: {message}"
    if isinstance(error, OSError) and error.errno is not None:
        if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            return None
        return ": ".join(str(part) for part in (error.filename, error.strerror) if part)
    if isinstance(error, ValueError) and _STATUS.search(message):
        return message
    return None


@contextlib.contextmanager
def faults() -> Iterator[None]:
    """Turn errors of storage clients into StorageError; other errors pass through.

    Raises:
      StorageError: one line.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise
        message = explain(error)
        if message is None or isinstance(error, StorageError):
            raise
        raise StorageError(message) from error


def _bucket(path: epath.Path) -> epath.Path:
    return epath.Path(BUCKETS + str(path).removeprefix(BUCKETS).split("/")[0])


def _configure() -> None:
    """Settings before a bucket is first opened: no cached listings, and always the same client."""
    import fsspec

    # Orbax writes through tensorstore, and other hosts write too: a cached listing goes stale.
    for protocol in ("gs", "gcs"):
        fsspec.config.conf.setdefault(protocol, {})["use_listings_cache"] = False
    os.environ.setdefault("EPATH_USE_TF", "false")


@contextlib.contextmanager
def naming(file: AnyPath) -> Iterator[None]:
    """Add the file's name to errors of writing to it: the system's "No space left" has none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(file)) from error


def upload(folder: Path, output: AnyPath) -> None:
    """Copy a local folder into a bucket; on an error the partial copy is removed.

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
    """`function` of each item, in order; several run at once, because buckets are slow."""
    items = iter(items)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while some := list(itertools.islice(items, _AT_ONCE)):
            yield from pool.map(function, some)


def size(file: AnyPath) -> int:
    """Bytes of a file."""
    return file.stat().length if is_bucket(file) else file.stat().st_size


def held(folder: AnyPath) -> Iterable[str]:
    """Names of the entries of `folder`; none where it is missing."""
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def sizes(folder: AnyPath) -> dict[str, int | None]:
    """Entries of `folder` by name: the bytes of a file, None for a folder; empty if missing.

    A bucket gets one request for many files.
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
