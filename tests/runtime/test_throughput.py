"""Speed and memory of a run."""

from types import SimpleNamespace
from unittest.mock import Mock

import jax
import pytest

from pea_jax.runtime import throughput
from pea_jax.runtime.throughput import Throughput


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_speed_counts_steps_and_leaves_out_what_is_between_them():
    clock = Clock()
    throughput = Throughput(8, jax.devices()[:2], clock)
    assert throughput.rate is None
    assert throughput.read() == {}
    throughput.step()  # compiled; starts the clock
    assert throughput.rate is None
    for _ in range(3):
        clock.now += 2.0
        throughput.step()
    assert throughput.rate == 4.0
    throughput.interrupt()
    clock.now += 1000.0  # saving
    throughput.step()
    assert throughput.rate == 4.0
    throughput.restart()
    assert throughput.rate is None
    clock.now += 1.0
    throughput.step()
    assert throughput.rate == 8.0


def test_waiting_is_a_share_of_the_steps_that_are_timed():
    clock = Clock()
    throughput = Throughput(8, jax.devices()[:2], clock)
    with throughput.waiting():
        clock.now += 50.0  # of the first batch: not of a timed step
    throughput.step()
    for waited in (0.5, 1.5):
        with throughput.waiting():
            clock.now += waited
        clock.now += 4.0 - waited
        throughput.step()
    assert throughput.read() == {
        "step_seconds": 4.0,
        "images_per_second": 2.0,
        "images_per_second_per_chip": 1.0,
        "data_wait": 0.25,
    }
    throughput.interrupt()
    with throughput.waiting():
        clock.now += 9.0
    throughput.step()
    assert throughput.read()["data_wait"] == 0.25


def test_utilisation_is_of_the_peak_of_all_chips():
    clock = Clock()
    device = Mock(spec=jax.devices()[0], device_kind="TPU v5 lite")
    throughput = Throughput(16, [device] * 4, clock)
    throughput.step()
    clock.now += 2.0
    throughput.step()
    values = throughput.read(lambda kind: 197e12)
    assert values["mfu"] == pytest.approx(1 / 2 / 4)
    assert values["images_per_second_per_chip"] == 2.0
    assert "mfu" not in throughput.read()
    # Steps of a larger size count for what they compute, once that is known of every size.
    clock.now += 6.0
    throughput.step("large")
    values = throughput.read({None: 197e12, "large": 394e12}.get)
    assert values["mfu"] == pytest.approx(3 / 8 / 4)
    assert values["step_seconds"] == 4.0
    assert "mfu" not in throughput.read({None: 197e12}.get)
    unknown = Throughput(16, jax.devices()[:1], clock)
    unknown.step()
    clock.now += 2.0
    unknown.step()
    assert "mfu" not in unknown.read(lambda kind: 1e12)


def test_memory_is_that_of_the_fullest_device(monkeypatch):
    def device(used: int, peak: int) -> SimpleNamespace:
        return SimpleNamespace(
            memory_stats=lambda: {"bytes_in_use": used, "peak_bytes_in_use": peak}
        )

    silent = SimpleNamespace(memory_stats=lambda: None)
    monkeypatch.setattr(jax, "local_devices", lambda: [device(2 * 10**9, 10**10), device(1, 2)])
    assert throughput.memory() == {"memory_gb": 2.0, "memory_peak_gb": 10.0}
    monkeypatch.setattr(jax, "local_devices", lambda: [silent])
    assert throughput.memory() == {}
