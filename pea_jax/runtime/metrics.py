"""What a run tells: metrics.jsonl and TensorBoard events in its workdir, a progress bar on screen.

workdir/metrics.jsonl     one JSON object a line: {"step": 20, "loss": 0.31, ...}
workdir/tensorboard/      the same scalars, and images
"""

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pea_jax.runtime import storage
from pea_jax.runtime.storage import AnyPath
from pea_jax.runtime.tensorboard import EventWriter

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
