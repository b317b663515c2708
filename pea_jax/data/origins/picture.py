"""The image in a cell of a table or a set: its bytes, or the path of its file."""

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pea_jax.data.origins.record import MAX_PICTURE, NO_FILE, NO_PATH, OUTSIDE, TOO_LARGE
from pea_jax.runtime import storage
from pea_jax.runtime.storage import AnyPath

#: Errors of a path without a file. Any other error concerns the disk and ends the task.
_MISSING = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
_MISSING += (errno.ENAMETOOLONG, errno.EINVAL)


def read(cell: Any, folders: Sequence[AnyPath]) -> tuple[bytes | None, str | None]:
    """The image file of a cell, or the fault.

    Args:
      cell: bytes; a path; or {"bytes", "path"}, as the package `datasets` stores it.
      folders: paths are relative to the first folder and must lead below one of the folders, so
        that a table cannot read other files of this machine. Without folders, paths are faults.
    """
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str) and folders and "://" not in cell:
        if not cell.strip():
            return None, None
        try:
            cell = _content(cell, folders)
        except ValueError:  # the path has a null character or a lone surrogate
            return None, NO_FILE
        except OSError as error:
            if error.errno not in _MISSING:
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
    """At most `MAX_PICTURE` + 1 bytes of a file; None if it is not below the folders.

    Raises:
      OSError: the file is unreadable, or not a regular file.
    """
    path, size = folders[0] / name, MAX_PICTURE
    if storage.is_bucket(folders[0]):
        if name.startswith("/") or ".." in name.split("/"):
            return None
    else:
        path = Path(os.path.realpath(path))
        if not any(path.is_relative_to(os.path.realpath(folder)) for folder in folders):
            return None
        # Opening a pipe would block until something writes to it.
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(errno.ENOENT, "no regular file", str(path))
        size = min(size, status.st_size)
    with path.open("rb") as stream:
        return stream.read(size + 1)
