"""An orderly end on Ctrl-C or SIGTERM, of one process or of all of them together."""

import os
import signal

from pea_jax.runtime import processes


class StopRequest:
    """Notes Ctrl-C and SIGTERM, and spreads them from one process to all; a context manager.

    In a run of one process the second signal ends the process at once.

    Args:
        start: the step that the run resumes from.

    Attributes:
        signal: the number of the signal; None before it arrives.
    """

    def __init__(self, start: int) -> None:
        self._start = start
        self.signal: int | None = None

    def __enter__(self) -> "StopRequest":
        # Where there are several processes, jax handles SIGTERM and notifies all of them (`due`).
        numbers = [signal.SIGINT]
        if not processes.is_distributed():
            numbers.append(signal.SIGTERM)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def due(self, step: int) -> bool:
        """Whether the run ends with this step; every process calls it once per step."""
        if self.signal is None and processes.preempted(step - self._start):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def _note(self, number: int, frame: object) -> None:
        del frame
        if processes.is_distributed():
            signal.raise_signal(signal.SIGTERM)
        elif self.signal is not None:
            # Nothing is lost: a checkpoint is renamed to its place only when it is whole.
            os._exit(128 + number)
        else:
            self.signal = number
        # print is not safe in a signal handler.
        os.write(2, b"\nstopping after this step (Ctrl-C again: at once)\n")
