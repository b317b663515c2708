import os
import re
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from pea_jax.assembly import data_benchmark, trainer
from pea_jax.tasks.prepare import prepare
from tests import tiny


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    return tiny.config(tiny.write_models(folder / "models"), tiny.write_data(folder / "data"))


def test_it_reads_what_training_reads(config, monkeypatch):
    """Other batches than those of the run would give a misleading throughput."""
    taken = []

    def keep(batches, images, *_):
        taken.extend(next(batches) for _ in range(2))
        yield data_benchmark.Reading(images, 1.0, 1.0, None)

    monkeypatch.setattr(data_benchmark, "readings", keep)
    monkeypatch.setattr(data_benchmark, "WARM_UP", 1)
    prepare(config, benchmark=True)
    loader = trainer.build(config).loader
    next(loader)
    for batch in taken:
        jax.tree.map(np.testing.assert_array_equal, batch, next(loader))
    loader.close()


def test_the_throughput_is_reported(config, capsys, monkeypatch):
    monkeypatch.setattr(data_benchmark, "SECONDS", 0.1)
    begin = time.perf_counter()
    prepare(config, benchmark=True)
    took = time.perf_counter() - begin
    output = capsys.readouterr().out
    assert "batches of 16 rows, threads of one process, " in output
    (rate,) = re.findall(r"^([\d.]+) images/s, [\d.]+ in the median second$", output, re.MULTILINE)
    assert float(rate) > 16 * data_benchmark.BATCHES / took


def test_each_reading_is_a_second_of_whole_batches_and_there_are_enough():
    now = 0.0

    def batches():
        nonlocal now
        while True:
            now += 0.4
            yield {}

    found = list(data_benchmark.readings(batches(), 10, 2.0, lambda: now))
    # A second holds three batches of 0.4 s; five batches take two of them.
    assert [one.images for one in found] == [30, 30]
    assert [one.seconds for one in found] == pytest.approx([1.2, 1.2])
    now = 0.0
    assert sum(one.images for one in data_benchmark.readings(batches(), 10, 0.0, lambda: now)) == 60


def test_the_summary_is_over_all_readings():
    found = [data_benchmark.Reading(100, 1.0, 0.5, 2.0), data_benchmark.Reading(50, 2.0, 0.25, 1.0)]
    assert data_benchmark.summary(found, 2) == [
        "50.0 images/s, 62.5 in the median second",
        "50.0 images/s a core, 1.0 cores were busy",
        "5.00 ms an image in the training process: with any number of workers no more than "
        "200 images/s",
    ]
    found[0] = data_benchmark.Reading(100, 1.0, 0.5, None)
    assert len(data_benchmark.summary(found, 0)) == 1


def test_cpu_seconds_are_of_workers_too():
    if not os.path.exists("/proc/self/stat"):
        pytest.skip("needs /proc")
    code = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
    own, before = time.process_time(), data_benchmark.cpu_seconds()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        spent, own = data_benchmark.cpu_seconds() - before, time.process_time() - own
        process.communicate(b"\n")
    assert spent - own == pytest.approx(0.5, abs=0.1)
