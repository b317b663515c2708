"""TensorBoard's event files, written in the calling thread, on local disks and in buckets.

tensorboardX's SummaryWriter hands events to a thread: on a full disk that thread dies and the
program waits for it for ever. Here only its summaries and protocol buffers are used.
"""

import contextlib
import socket
import struct
import time

import numpy as np
from jaxtyping import UInt8
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from pea_jax.runtime.growing import GrowingFile
from pea_jax.runtime.storage import AnyPath, is_bucket

#: Bytes. A file in a bucket is rewritten as it grows, so a larger one is followed by a new file.
_LARGEST_OBJECT = 2**22


class EventWriter(contextlib.AbstractContextManager):
    """Event files of one session of a run; a context manager.

    Args:
        folder: made where it is missing.
        purge_step: TensorBoard hides events of earlier sessions from this step on.
    """

    def __init__(self, folder: AnyPath, *, purge_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._start()
        self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def scalar(self, step: int, name: str, value: float) -> None:
        """A point of a curve."""
        self._add(step, summary.scalar(name, value))

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """An image."""
        self._add(step, summary.image(name, image, dataformats="HWC"))

    def flush(self) -> None:
        """Make everything visible to readers."""
        self._file.flush()

    def _start(self) -> None:
        # TensorBoard reads the files of a folder in the order of their names.
        seconds, rest = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{rest:09d}"
        self._file, self._size = GrowingFile(self._folder / name), 0
        self._write(Event(file_version="brain.Event:2"))

    def _add(self, step: int, content: Summary) -> None:
        if is_bucket(self._folder) and self._size > _LARGEST_OBJECT:
            self._file.close()
            self._start()
        self._write(Event(step=step, summary=content))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        data = event.SerializeToString()
        header = struct.pack("<Q", len(data))
        checks = (struct.pack("<I", masked_crc32c(part)) for part in (header, data))
        record = b"".join((header, next(checks), data, next(checks)))
        self._file.write(record)
        self._size += len(record)
