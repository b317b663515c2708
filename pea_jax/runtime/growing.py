"""A file that grows piece by piece, on a local disk or in a bucket."""

import contextlib
import time

from pea_jax.runtime.storage import AnyPath, is_bucket, naming, replace_bytes

#: A growing object in a bucket is written anew at most this often, in seconds.
REWRITE_SECONDS = 30.0


class GrowingFile(contextlib.AbstractContextManager):
    """A file that grows piece by piece, made anew; a context manager.

    On a local disk each piece goes to the operating system at once, and survives a kill of this
    process. In a bucket the whole object is rewritten: by `flush`, and by `write` when
    REWRITE_SECONDS have passed.

    Args:
      file: its folder must exist.
      begin: the first content.
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

    def __exit__(self, *exception: object) -> None:
        self.close()

    def write(self, piece: bytes) -> None:
        """Append `piece`.

        Raises:
          OSError: names the file.
        """
        if self._stream is not None:
            with naming(self._file):
                self._stream.write(piece)
            return
        self._pieces.append(piece)
        if time.monotonic() - self._written > REWRITE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Make everything visible to readers."""
        if self._stream is None and len(self._pieces) > self._flushed:
            self._pieces = [b"".join(self._pieces)]
            replace_bytes(self._file, self._pieces[0])
            self._flushed, self._written = 1, time.monotonic()

    def close(self) -> None:
        """Flush and end the file."""
        if self._stream is not None:
            self._stream.close()
        else:
            self.flush()
