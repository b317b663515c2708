"""Progress on standard error: of a training run, and of images that are sampled."""

import datetime
import io
from collections.abc import Iterator, Mapping, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from pea_jax.runtime import processes

#: One element per image.
Batch = TypeVar("Batch", bound=Sized)


class TrainingBar:
    """Step, loss terms, images/s and time left: a bar on a terminal, plain lines elsewhere.

    Args:
        total: the last step of the run.
        images_per_step: of the whole batch, over all hosts.
        start: the step that the run resumes from.
        log_every: plain lines appear at every multiple of it, and at the last step.
        stream: None is standard error.
        enabled: False shows nothing (on every process but one).
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
        console = Console(file=stream, stderr=stream is None, quiet=not enabled, emoji=False)
        self._bar = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[speed]}"),
            # On a narrow terminal the terms take several lines.
            TextColumn("{task.fields[terms]}", table_column=Column(ratio=1)),
            expand=True,
            console=console,
            refresh_per_second=4,
            disable=not (enabled and console.is_terminal),
        )
        self._task = self._bar.add_task(
            "", total=total, completed=start, speed="compiling", terms=""
        )

    def __enter__(self) -> "TrainingBar":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Show a line, above the bar where there is one."""
        self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def update(self, step: int, values: Mapping[str, float], rate: float | None) -> None:
        """Show the progress after `step` steps.

        Args:
            step: counted from 1.
            values: of that step; "loss" and those named loss_* are shown.
            rate: images per second; None keeps the last.
        """
        terms = [
            f"{name.removeprefix('loss_')} {value:.4g}"
            for name, value in values.items()
            if name == "loss" or name.startswith("loss_")
        ]
        self._rate = self._rate if rate is None else rate
        speed = []
        if self._rate is not None:
            seconds = (self._total - step) * self._images_per_step / self._rate
            left = datetime.timedelta(seconds=round(seconds))
            speed = [f"{self._rate:.1f} images/s", f"{left} left"]
        fields = {"speed": "  ".join(speed), "terms": "  ".join(terms)}
        self._bar.update(self._task, completed=step, **fields)
        if self._bar.disable and (step % self._log_every == 0 or step == self._total):
            self.say("  ".join([f"step {step}/{self._total}", *speed, *terms]))


def progress(batches: Iterator[Batch], total: int, label: str = "sampling") -> Iterator[Batch]:
    """The batches unchanged; a bar on standard error counts their images up to `total`."""
    columns = ["{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(
        *columns, console=Console(stderr=True), disable=processes.process_index() > 0
    ) as bar:
        task = bar.add_task(label, total=total)
        for images in batches:
            yield images
            bar.update(task, advance=len(images))
