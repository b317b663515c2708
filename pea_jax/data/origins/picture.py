"""The picture that a cell of a table or a set holds: its bytes, or the path of its file."""

import errno
from collections.abc import Mapping
from typing import Any

from pea_jax.data.origins.record import NO_FILE, NO_PATH
from pea_jax.storage import AnyPath

#: What a path means that leads to no file; any other error is of the disk, and ends the task.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, None)


def read(cell: Any, folder: AnyPath | None) -> tuple[bytes | None, str | None]:
    """The file of a picture, and what is wrong with it where there is none.

    Args:
      cell: its bytes; its path; or {"bytes", "path"}, as the package `datasets` stores it.
      folder: what paths are relative to; None: there are no files.
    """
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if cell is None or isinstance(cell, bytes):
        return cell, None
    if not isinstance(cell, str) or "://" in cell or folder is None:
        return None, NO_PATH
    if not cell.strip():
        return None, None
    try:
        return (folder / cell).read_bytes(), None
    except UnicodeError:
        return None, NO_FILE
    except ValueError:  # a null character in the path
        return None, NO_FILE
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return None, NO_FILE
