"""`pea-jax prepare --benchmark`: the throughput of the loader alone."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
from ml_collections import ConfigDict

from pea_jax.assembly.checks import batch_rows, check
from pea_jax.assembly.data_factory import open_loader, open_source
from pea_jax.data.read.loader import Batch
from pea_jax.weights.bases import read_base_config, read_tokenizer
from pea_jax.weights.language import read_language_config, read_tokenizers
from pea_jax.weights.tokenizers import join

#: Uncounted first batches, which start the workers and fill the queues.
WARM_UP = 4

#: Minimum duration of the measurement: seconds, and batches.
SECONDS, BATCHES = 20.0, 5


@dataclass(frozen=True)
class Reading:
    """The measurement of some consecutive batches.

    Attributes:
      images: total number of images.
      seconds: elapsed time.
      own: CPU seconds of this process, which would be the training process.
      cpu: CPU seconds of this process and its descendants; None if the system has no /proc.
    """

    images: int
    seconds: float
    own: float
    cpu: float | None


def cpu_seconds() -> float | None:
    """CPU seconds of this process and its living descendants; None without /proc."""
    parents, spent = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        # Ignore processes that end meanwhile: workers do not.
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)] = int(fields[1])
            spent[int(folder.name)] = int(fields[11]) + int(fields[12])

    def is_ours(process: int) -> bool:
        return process == os.getpid() or (process in parents and is_ours(parents[process]))

    if not spent:
        return None
    ticks = sum(ticks for process, ticks in spent.items() if is_ours(process))
    return ticks / os.sysconf("SC_CLK_TCK")


def readings(
    batches: Iterator[Batch], images: int, seconds: float, clock: Callable[[], float]
) -> Iterator[Reading]:
    """One reading per second, each of at least one batch.

    Args:
      batches: endless.
      images: per batch.
      seconds: minimum duration; at least `BATCHES` batches are read.
      clock: returns seconds.
    """
    taken, begin = 0, clock()
    while taken < BATCHES or clock() - begin < seconds:
        count, start, own, cpu = 0, clock(), time.process_time(), cpu_seconds()
        while not count or clock() - start < 1:
            next(batches)
            count += 1
        taken += count
        took, own = clock() - start, time.process_time() - own
        yield Reading(count * images, took, own, None if cpu is None else cpu_seconds() - cpu)


def show(config: ConfigDict) -> None:
    """Reads batches from the loader of a run and prints the throughput of every second.

    It reads no weights. It uses a device only to resolve the dtype of `data.latents`. This host
    makes the whole batch, or the batch of one device with `data.per_device`.

    Args:
      config: see configs/base.py.

    Raises:
      ValueError: the config is invalid, or does not fit the data set.
    """
    check(config, data_shards=1)
    platform = jax.local_devices()[0].platform if config.data.latents else ""
    language = read_language_config(config.model.language_encoder)
    rows = batch_rows(config, data_shards=1)
    loader = open_loader(
        config,
        open_source(config, platform),
        rows,
        native_tokenizer=join(read_tokenizers(language, config.model.language_max_length)),
        english_tokenizer=read_tokenizer(read_base_config(config.model.base)),
    )
    images, workers = sum(rows.values()), config.data.workers
    mode = f"{workers} worker{'s' * (workers > 1)}" if workers else "threads of one process"
    print(f"batches of {images} rows, {mode}, {_cores()} cores", flush=True)
    with contextlib.closing(loader):
        for _ in range(WARM_UP):
            next(loader)
        found, passed = [], 0.0
        for reading in readings(loader, images, SECONDS, time.perf_counter):
            found.append(reading)
            passed += reading.seconds
            rate = reading.images / reading.seconds
            print(f"  {passed:5.1f} s  {rate:8.1f} images/s", flush=True)
    print("\n".join(summary(found, workers)))


def summary(found: list[Reading], workers: int) -> list[str]:
    """The summary of the readings for a number of workers, as lines."""
    images, took = sum(one.images for one in found), sum(one.seconds for one in found)
    own = sum(one.own for one in found)
    middle = statistics.median(one.images / one.seconds for one in found)
    lines = [f"{images / took:.1f} images/s, {middle:.1f} in the median second"]
    if all(one.cpu is not None for one in found):
        cpu = sum(one.cpu for one in found)
        lines.append(f"{images / cpu:.1f} images/s a core, {cpu / took:.1f} cores were busy")
    if workers:
        lines.append(
            f"{1e3 * own / images:.2f} ms an image in the training process: with any number of "
            f"workers no more than {images / own:.0f} images/s"
        )
    return lines


def _cores() -> int:
    """The number of cores that this process may use."""
    known = getattr(os, "sched_getaffinity", None)
    return len(known(0)) if known else os.cpu_count() or 1
