"""The stream of fetched elements, decoded by threads or worker processes of Grain."""

import os
import signal
import sys

import grain
from absl import flags

from pea_jax.data.child_process import end_with_parent
from pea_jax.data.read.fetch import Fetch


def start(fetch: Fetch, first: int, workers: int) -> grain.DatasetIterator:
    """The endless stream of elements from number `first` on.

    Args:
      fetch: element number -> element.
      first: number of the first element.
      workers: processes; 0 uses threads of this process.
    """
    elements = grain.MapDataset.range(first, sys.maxsize).map(fetch)
    if not workers:
        threads = min(16, os.cpu_count() or 1)
        options = grain.ReadOptions(
            num_threads=threads, prefetch_buffer_size=max(threads, 2 * fetch.share)
        )
        return iter(elements.to_iter_dataset(options))
    if not flags.FLAGS.is_parsed():
        # Grain reads an absl flag here, and programs without absl.app have parsed no flags.
        flags.FLAGS.mark_as_parsed()
    # Processes need no threads. Their queues together hold two batches.
    plain = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    options = grain.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=max(1, -(-2 * fetch.share // workers))
    )
    # Rows come through pipes. Shared memory would be allocated for each image, which costs more
    # than copying, and containers have little of it (Docker: 64 MB).
    piped = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
    elements = grain.experimental.WithOptionsIterDataset(elements.to_iter_dataset(plain), piped)
    return iter(elements.mp_prefetch(options, worker_init_fn=_start_worker))


def _start_worker(index: int, count: int) -> None:
    """Initialise a worker process. Only the parent handles Ctrl-C and SIGTERM."""
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
