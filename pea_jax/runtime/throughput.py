"""What is read of a run while it goes: the pace of steps, waiting for data, compiling, memory, and
the loss of each language.
"""

import contextlib
import functools
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Float

from pea_jax.runtime import chips

#: What jax calls the time that it takes to make, or to fetch, one compiled program.
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Throughput:
    """The pace of the steps alone, from the moments at which one after another was done.

    Args:
        images_per_step: of the whole batch, over all hosts.
        devices: of all hosts, of one kind.
        clock: returns seconds.
    """

    def __init__(
        self,
        images_per_step: int,
        devices: Sequence[jax.Device] = (),
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._images_per_step, self._devices, self._clock = images_per_step, devices, clock
        self._last: float | None = None
        self._waited = 0.0
        self.restart()

    def step(self, kind: Hashable = None) -> None:
        """A step is done; the first one, and the first after `interrupt`, only starts the clock.

        Args:
            kind: tells steps apart that compute more than others.
        """
        now = self._clock()
        if self._last is not None:
            self._steps[kind] += 1
            self._seconds += now - self._last
            self._waiting += self._waited
        self._last, self._waited = now, 0.0

    def interrupt(self) -> None:
        """Something else than steps follows (saving, sampling)."""
        self._last = None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """What happens inside is waiting for data."""
        start = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - start

    @property
    def rate(self) -> float | None:
        """Images a second since the last `restart`; None where no step was timed."""
        images = self._steps.total() * self._images_per_step
        return images / self._seconds if self._seconds else None

    def read(
        self, model_flops: Callable[[Hashable], float | None] = lambda kind: None
    ) -> dict[str, float]:
        """All that is known since the last `restart`, by its name in the metrics.

        Args:
            model_flops: of a step of some kind over all devices, which a perfect program would
                compute; None where it is not known.

        Returns:
            step_seconds; images_per_second, and images_per_second_per_chip where there are devices;
            data_wait, the share of the time that this process spent waiting for data; and mfu, the
            share of the devices' bfloat16 peak that the model's own operations take (PaLM,
            appendix B), where that is known of all steps. Nothing where no step was timed.
        """
        if not self._steps:
            return {}
        seconds = self._seconds / self._steps.total()
        told = {"step_seconds": seconds, "images_per_second": self._images_per_step / seconds}
        if self._devices:
            told["images_per_second_per_chip"] = told["images_per_second"] / len(self._devices)
        told["data_wait"] = self._waiting / self._seconds
        chip = chips.find(self._devices[0].device_kind) if self._devices else None
        flops = {kind: model_flops(kind) for kind in self._steps}
        if chip is not None and None not in flops.values():
            done = sum(count * flops[kind] for kind, count in self._steps.items())
            told["mfu"] = done / self._seconds / (len(self._devices) * chip.flops)
        return told

    def restart(self) -> None:
        """Begin another reading."""
        self._steps: Counter[Hashable] = Counter()
        self._seconds, self._waiting = 0.0, 0.0


class LanguageLosses:
    """The mean loss of the rows of each language, over some steps.

    Args:
        languages: of the run, in the order of the sums. One alone is not told apart.
    """

    def __init__(self, languages: Sequence[str]):
        self._names = [f"loss/{language}" for language in languages]
        self.restart()

    def add(self, sums: Float[np.ndarray, "_"], rows: Float[np.ndarray, "_"]) -> dict[str, float]:
        """Count a step in; returns what `read` would tell of this step alone.

        Args:
            sums: of the losses of each language's rows.
            rows: how many these are.
        """
        self._sums, self._rows = self._sums + sums, self._rows + rows
        return self._means(sums, rows)

    def read(self) -> dict[str, float]:
        """The means since the last `restart`, as "loss/zh"; a language without rows has none."""
        return self._means(self._sums, self._rows)

    def restart(self) -> None:
        """Begin another reading."""
        self._sums, self._rows = (np.zeros(len(self._names)) for _ in range(2))

    def _means(self, sums: np.ndarray, rows: np.ndarray) -> dict[str, float]:
        told = zip(self._names, sums, rows, strict=True)
        return {name: float(total / count) for name, total, count in told if count}


class Compilations:
    """Programs that jax compiled, or fetched from its cache, since this was made."""

    def __init__(self) -> None:
        self._begin = _compiled().copy()

    @property
    def count(self) -> int:
        """How many."""
        return int(_compiled()[0] - self._begin[0])

    @property
    def seconds(self) -> float:
        """What they took."""
        return _compiled()[1] - self._begin[1]


@functools.cache
def _compiled() -> list[float]:
    """Count and seconds of this process, which jax keeps up."""
    total = [0.0, 0.0]

    def add(event: str, seconds: float, **_: object) -> None:
        if event == _COMPILED:
            total[0] += 1
            total[1] += seconds

    jax.monitoring.register_event_duration_secs_listener(add)
    return total


def memory() -> dict[str, float]:
    """GB in use, now and at most, on the fullest of this process's devices; CPUs do not tell."""
    stats = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    names = {"memory_gb": "bytes_in_use", "memory_peak_gb": "peak_bytes_in_use"}
    return {
        name: max(one[counted] for one in stats) / 1e9
        for name, counted in names.items()
        if stats and all(counted in one for one in stats)
    }
