"""The metrics of a run: metrics.jsonl and TensorBoard events in its workdir.

workdir/metrics.jsonl     one JSON object a line: {"step": 20, "loss": 0.31, ...}
workdir/tensorboard/      the same scalars, and images
workdir/not-finite/       metrics and row keys of a step whose loss is not finite
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from pea_jax.runtime import processes, storage
from pea_jax.runtime.growing import GrowingFile
from pea_jax.runtime.storage import AnyPath
from pea_jax.runtime.tensorboard import EventWriter

METRICS_FILE = "metrics.jsonl"
EVENTS = "tensorboard"
NOT_FINITE = "not-finite"


def read_metrics(workdir: AnyPath) -> list[dict[str, Any]]:
    """The lines of a workdir's metrics.jsonl; a last line cut short by a kill is left out."""
    file = workdir / METRICS_FILE
    lines = file.read_text("utf-8").splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class MetricWriter(contextlib.AbstractContextManager):
    """Writes scalars and images of a run; used as a context manager.

    Args:
        workdir: of the run.
        resumed: the step that the run resumes from. Lines of later steps are dropped: an earlier
            session wrote them and ended without a checkpoint, so those steps are trained again.
        enabled: False writes nothing (on every process but one).
    """

    def __init__(self, workdir: AnyPath, *, resumed: int = 0, enabled: bool = True):
        self._lines: GrowingFile | None = None
        if not enabled:
            return
        workdir.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(workdir) if line["step"] <= resumed]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        self._lines = GrowingFile(workdir / METRICS_FILE, text.encode())
        self._events = EventWriter(workdir / EVENTS, purge_step=resumed + 1)

    def __exit__(self, *exception: object) -> None:
        if self._lines is None:
            return
        # Where the run already ends with an error, another one of the same disk adds nothing.
        ignored = contextlib.suppress(OSError) if exception[0] else contextlib.nullcontext()
        with ignored, self._events, self._lines:
            pass

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line of metrics.jsonl, and a point of a TensorBoard curve for each value.

        Raises:
            OSError: the files cannot be written.
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

    def flush(self) -> None:
        """Make everything visible to readers; in a bucket it otherwise appears some 30 s late."""
        if self._lines is not None:
            self._lines.flush()
            self._events.flush()


class LanguageLosses:
    """The mean loss of each language's rows, over several steps.

    Args:
        languages: of the run, in the order of the sums.
    """

    def __init__(self, languages: Sequence[str]):
        self._names = [f"loss/{language}" for language in languages]
        self.restart()

    def add(self, sums: Float[np.ndarray, "_"], rows: Float[np.ndarray, "_"]) -> dict[str, float]:
        """Add one step; returns the means of this step alone, named as in `read`.

        Args:
            sums: per language, the sum of its rows' losses.
            rows: per language, the number of its rows.
        """
        self._sums, self._rows = self._sums + sums, self._rows + rows
        return self._means(sums, rows)

    def read(self) -> dict[str, float]:
        """The means since the last `restart`, as "loss/zh"; languages without rows are absent."""
        return self._means(self._sums, self._rows)

    def restart(self) -> None:
        """Reset the sums."""
        self._sums, self._rows = (np.zeros(len(self._names)) for _ in range(2))

    def _means(self, sums: np.ndarray, rows: np.ndarray) -> dict[str, float]:
        totals = zip(self._names, sums, rows, strict=True)
        return {name: float(total / count) for name, total, count in totals if count}


def write_not_finite(
    workdir: AnyPath, step: int, values: Mapping[str, float], keys: Mapping[str, Any]
) -> AnyPath:
    """Write the metrics of a step and the keys of this process's rows of it.

    Args:
        workdir: of the run.
        step: counted from 1.
        values: metrics, of which some are not finite.
        keys: of the rows, by part of the batch.

    Returns:
        The file, one per process.
    """
    file = workdir / NOT_FINITE / f"{step:08d}-process-{processes.process_index()}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    # JSON has no NaN.
    metrics = {name: str(value) for name, value in values.items()}
    content = {"step": step, "metrics": metrics, "keys": keys}
    storage.replace_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return file
