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


def parse(given: str | None) -> range:
    """The steps of a sitting, counted from 1, that "START:COUNT" asks to trace; None asks none.

    Raises:
        ValueError: it is of another form, or COUNT is 0.
    """
    if given is None:
        return range(0)
    start, _, count = given.partition(":")
    if not (start.isdecimal() and count.isdecimal() and int(count)):
        raise ValueError(f"profile: expected START:COUNT such as 20:5, got {given!r}")
    return range(int(start) + 1, int(start) + int(count) + 1)


class Trace:
    """Traces some steps of this process into WORKDIR/profile/; a context manager.

    Args:
        workdir: of the run.
        steps: of the sitting; empty traces nothing.
        enabled: False traces nothing either.
    """

    def __init__(self, workdir: AnyPath, steps: range, *, enabled: bool):
        self._workdir = workdir
        self._steps = steps if enabled else range(0)
        self._stack: contextlib.ExitStack | None = None

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """A step of the sitting, counted from 1, is dispatched inside."""
        if self._steps and number == self._steps.start:
            self._start()
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def dispatched(self, number: int, outputs: Any) -> None:
        """That step was dispatched; the last one is waited for, so that the trace has all of it.

        Args:
            number: counted from 1.
            outputs: arrays that the step makes.
        """
        if self._steps and number == self._steps.stop - 1:
            jax.block_until_ready(outputs)
            self._stop()

    def _start(self) -> None:
        self._stack = contextlib.ExitStack()
        stamp = time.strftime("%Y_%m_%d_%H_%M_%S")
        output = self._workdir / PROFILE / stamp
        folder = self._stack.enter_context(storage.appearing(output))
        jax.profiler.start_trace(str(folder))
        self._stack.callback(jax.profiler.stop_trace)

    def _stop(self) -> None:
        if self._stack is not None:
            self._stack.close()
            self._stack = None
