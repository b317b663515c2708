"""What a run tells: metrics.jsonl and TensorBoard events in its workdir, a progress bar on screen.

workdir/metrics.jsonl     one JSON object a line: {"step": 20, "loss": 0.31, ...}
workdir/tensorboard/      the same scalars, and images
"""

import contextlib
import datetime
import io
import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from pea_jax import storage
from pea_jax.events import EventWriter
from pea_jax.storage import AnyPath

METRICS_FILE = "metrics.jsonl"
EVENTS = "tensorboard"


def read_metrics(workdir: AnyPath) -> list[dict[str, Any]]:
    """The lines of a workdir's metrics.jsonl; a last line cut short by a kill is left out."""
    file = workdir / METRICS_FILE
    lines = file.read_text("utf-8").splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class MetricWriter:
    """Writes scalars and images of a run; used as a context manager.

    Args:
        workdir: of the run.
        resumed: the step that the run goes on from. What was written of later steps, by a sitting
            that ended without a checkpoint, is dropped: those steps are taken again.
        enabled: False writes nothing (every process of a run but one).
    """

    def __init__(self, workdir: AnyPath, *, resumed: int = 0, enabled: bool = True):
        self._lines: storage.Growing | None = None
        if not enabled:
            return
        workdir.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(workdir) if line["step"] <= resumed]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        self._lines = storage.Growing(workdir / METRICS_FILE, text.encode())
        self._events = EventWriter(workdir / EVENTS, purge_step=resumed + 1)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lines is None:
            return
        # Where the run ends with an error, that of the same disk or bucket has nothing to add.
        ignored = contextlib.suppress(OSError) if exception[0] else contextlib.nullcontext()
        with ignored, self._events, self._lines:
            pass

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line of metrics.jsonl, and a point of a TensorBoard curve for each value.

        Raises:
            OSError: it cannot be written.
        """
        if self._lines is None:
            return
        values = {name: float(value) for name, value in values.items()}
        self._lines.write((json.dumps({"step": step} | values) + "\n").encode())
        for name, value in values.items():
            self._events.scalar(step, name, value)

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """Write one image to TensorBoard."""
        if self._lines is not None:
            self._events.image(step, name, image)

    def text(self, step: int, name: str, text: str) -> None:
        """Write a text (Markdown) to TensorBoard."""
        if self._lines is not None:
            self._events.text(step, name, text)

    def flush(self) -> None:
        """Let readers see all that was written; in a bucket they see it some 30 s late else."""
        if self._lines is not None:
            self._lines.flush()
            self._events.flush()


class TrainingBar:
    """Step, loss terms, images/s and time left: a bar on a terminal, plain lines elsewhere.

    Args:
        total: the last step of the run.
        images_per_step: of the whole batch, over all hosts.
        start: the step that the run goes on from.
        log_every: plain lines come at every multiple of it, and at the last step.
        stream: where to; standard error by default.
        enabled: False shows nothing (every process of a run but one).
    """

    def __init__(
        self,
        total: int,
        images_per_step: int,
        *,
        start: int = 0,
        log_every: int = 50,
        stream: io.TextIOBase | None = None,
        enabled: bool = True,
    ):
        self._rate: float | None = None
        self._total, self._images_per_step, self._log_every = total, images_per_step, log_every
        self._stream = sys.stderr if stream is None else stream
        self._enabled = enabled
        self._bar: Progress | None = None
        if enabled and self._stream.isatty():
            self._bar = Progress(
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=12),
                TextColumn("{task.fields[pace]}"),
                # On a narrow terminal the terms take several lines.
                TextColumn("{task.fields[terms]}", table_column=Column(ratio=1)),
                expand=True,
                console=Console(file=self._stream),
                refresh_per_second=4,
            )
            self._task = self._bar.add_task(
                "", total=total, completed=start, pace="compiling", terms=""
            )

    def __enter__(self) -> "TrainingBar":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Show a line, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        elif self._enabled:
            print(line, file=self._stream, flush=True)

    def update(self, step: int, values: Mapping[str, float], rate: float | None) -> None:
        """Show that `step` steps are done.

        Args:
            step: counted from 1.
            values: of that step; "loss" and those named loss_* are shown.
            rate: images a second; None keeps the last.
        """
        terms = [
            f"{name.removeprefix('loss_')} {value:.4g}"
            for name, value in values.items()
            if name == "loss" or name.startswith("loss_")
        ]
        self._rate = self._rate if rate is None else rate
        pace = []
        if self._rate is not None:
            seconds = (self._total - step) * self._images_per_step / self._rate
            left = datetime.timedelta(seconds=round(seconds))
            pace = [f"{self._rate:.1f} images/s", f"{left} left"]
        if self._bar is not None:
            told = {"pace": "  ".join(pace), "terms": "  ".join(terms)}
            self._bar.update(self._task, completed=step, **told)
        elif step % self._log_every == 0 or step == self._total:
            self.say("  ".join([f"step {step}/{self._total}", *pace, *terms]))
