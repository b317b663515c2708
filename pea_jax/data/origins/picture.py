"""The picture that a cell of a table or a set holds: its bytes, or the path of its file."""

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pea_jax.data.origins.record import MAX_PICTURE, NO_FILE, NO_PATH, OUTSIDE, TOO_LARGE
from pea_jax.runtime import storage
from pea_jax.runtime.storage import AnyPath

#: What a path means that leads to no file; any other error is of the disk, and ends the task.
_ABSENT = (
    None,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.ELOOP,
)


def read(cell: Any, folders: Sequence[AnyPath]) -> tuple[bytes | None, str | None]:
    """The file of a picture, and what is wrong with it where there is none.

    Args:
      cell: its bytes; its path; or {"bytes", "path"}, as the package `datasets` stores it.
      folders: paths are relative to the first, and lead to files below one of them. Whoever wrote
        the table reads nothing else of this machine. None at all: there are no files.
    """
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str) and folders and "://" not in cell:
        if not cell.strip():
            return None, None
        try:
            cell = _content(cell, folders)
        except ValueError:  # a null character in the path, or half of a surrogate
            return None, NO_FILE
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
            return None, NO_FILE
        if cell is None:
            return None, OUTSIDE
    if cell is not None and not isinstance(cell, bytes):
        return None, NO_PATH
    if cell is not None and len(cell) > MAX_PICTURE:
        return None, TOO_LARGE
    return cell, None


def _content(name: str, folders: Sequence[AnyPath]) -> bytes | None:
    """Of a file, `MAX_PICTURE` bytes and one more at most; None: it is not below the folders.

    Raises:
      OSError: it can't be read, or is no regular file.
    """
    path, size = folders[0] / name, MAX_PICTURE
    if storage.is_bucket(folders[0]):
        if name.startswith("/") or ".." in name.split("/"):
            return None
    else:
        path = Path(os.path.realpath(path))
        if not any(path.is_relative_to(os.path.realpath(folder)) for folder in folders):
            return None
        # Opening a pipe would wait for whoever writes to it.
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(errno.ENOENT, "no regular file", str(path))
        size = min(size, found.st_size)
    with path.open("rb") as stream:
        return stream.read(size + 1)
