"""Speed and memory of a run, measured while it trains."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence

import jax

from pea_jax.runtime import chips


class Throughput:
    """The speed of the steps alone, from the times at which successive steps finish.

    Args:
        images_per_step: rows of the whole batch, over all hosts.
        devices: of all hosts, of one kind.
        clock: returns seconds.
    """

    def __init__(
        self,
        images_per_step: int,
        devices: Sequence[jax.Device],
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._images_per_step, self._devices, self._clock = images_per_step, devices, clock
        self._last: float | None = None
        self._waited = 0.0
        self.restart()

    def step(self, kind: Hashable = None) -> None:
        """Count a finished step; the first one, and the first after `interrupt`, starts the clock.

        Args:
            kind: distinguishes steps by the amount of computation.
        """
        now = self._clock()
        if self._last is not None:
            self._steps[kind] += 1
            self._seconds += now - self._last
            self._waiting += self._waited
        self._last, self._waited = now, 0.0

    def interrupt(self) -> None:
        """Stop the clock, because other work than steps follows (saving, sampling)."""
        self._last = None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside this context as waiting for data."""
        start = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - start

    @property
    def rate(self) -> float | None:
        """Images per second since the last `restart`; None where no step was timed."""
        images = self._steps.total() * self._images_per_step
        return images / self._seconds if self._seconds else None

    def read(
        self, model_flops: Callable[[Hashable], float | None] = lambda kind: None
    ) -> dict[str, float]:
        """The measurements since the last `restart`, by their names in the metrics.

        Args:
            model_flops: of one step of a kind, over all devices, as the model's equations need
                them; None where unknown.

        Returns:
            step_seconds; images_per_second; images_per_second_per_chip; data_wait, the share of the
            time that this process waited for data; and mfu, the model's FLOPs as a share of the
            devices' bfloat16 peak (PaLM, appendix B), where they are known of all steps. Empty
            where no step was timed.
        """
        if not self._steps:
            return {}
        seconds = self._seconds / self._steps.total()
        rate = self._images_per_step / seconds
        values = {
            "step_seconds": seconds,
            "images_per_second": rate,
            "images_per_second_per_chip": rate / len(self._devices),
            "data_wait": self._waiting / self._seconds,
        }
        chip = chips.find(self._devices[0].device_kind)
        flops = {kind: model_flops(kind) for kind in self._steps}
        if chip is not None and None not in flops.values():
            done = sum(count * flops[kind] for kind, count in self._steps.items())
            values["mfu"] = done / self._seconds / (len(self._devices) * chip.flops)
        return values

    def restart(self) -> None:
        """Reset the measurements."""
        self._steps: Counter[Hashable] = Counter()
        self._seconds, self._waiting = 0.0, 0.0


def memory() -> dict[str, float]:
    """GB in use, now and at the peak, on the fullest device of this process; empty on CPUs."""
    stats = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    names = {"memory_gb": "bytes_in_use", "memory_peak_gb": "peak_bytes_in_use"}
    return {
        name: max(one[counted] for one in stats) / 1e9
        for name, counted in names.items()
        if stats and all(counted in one for one in stats)
    }
