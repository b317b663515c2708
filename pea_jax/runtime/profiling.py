"""Traces of some steps, for xprof: `pea-jax train --profile START:COUNT`."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from pea_jax.runtime import storage
from pea_jax.runtime.storage import AnyPath

#: The folder in a workdir, as TensorBoard looks for it.
PROFILE = "profile"


def parse(text: str | None) -> range:
    """The steps of a session, counted from 1, that "START:COUNT" selects; None selects none.

    Raises:
        ValueError: another form, or COUNT is 0.
    """
    if text is None:
        return range(0)
    start, _, count = text.partition(":")
    if not (start.isdecimal() and count.isdecimal() and int(count)):
        raise ValueError(f"profile: expected START:COUNT such as 20:5, got {text!r}")
    return range(int(start) + 1, int(start) + int(count) + 1)


class Trace(contextlib.ExitStack):
    """Traces some steps of this process into WORKDIR/profile/; a context manager.

    Args:
        workdir: of the run.
        steps: of the session; empty traces nothing.
        enabled: False traces nothing either.
    """

    def __init__(self, workdir: AnyPath, steps: range, *, enabled: bool):
        super().__init__()
        self._workdir = workdir
        self._steps = steps if enabled else range(0)

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around the dispatch of a step of the session, counted from 1."""
        if self._steps and number == self._steps.start:
            self._start()
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def dispatched(self, number: int, outputs: Any) -> None:
        """After the dispatch of a step; waits for the last one, so that the trace is complete.

        Args:
            number: counted from 1.
            outputs: arrays that the step makes.
        """
        if self._steps and number == self._steps.stop - 1:
            jax.block_until_ready(outputs)
            self.close()

    def _start(self) -> None:
        output = self._workdir / PROFILE / time.strftime("%Y_%m_%d_%H_%M_%S")
        folder = self.enter_context(storage.appearing(output))
        jax.profiler.start_trace(str(folder))
        self.callback(jax.profiler.stop_trace)
