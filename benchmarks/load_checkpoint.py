"""Host memory and time to load a sharded checkpoint: SDXL's UNet, 5.1 GB, on 8 devices.

    python tools/make_random_checkpoint.py sdxl --output DIR     # needs PyTorch and diffusers
    python benchmarks/load_checkpoint.py DIR [--processes 2]

The devices are virtual CPUs, so their arrays are in host memory too; the relevant value is the peak
beyond them. `own` is the size of the arrays on the process's devices (bfloat16, split over "fsdp"),
`peak` the growth of anonymous memory during loading, and `mapped` the file pages that were read.
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

DEVICES = 8


def memory(field: str) -> int:
    """Bytes of one kind of resident memory of this process, as counted by Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status: expected {field}, which Linux has")


class Peak:
    """Maximum growth of RssAnon and RssFile inside the context."""

    def __enter__(self) -> "Peak":
        self._before = {field: memory(field) for field in ("RssAnon", "RssFile")}
        self.grown = dict.fromkeys(self._before, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            for field, before in self._before.items():
                self.grown[field] = max(self.grown[field], memory(field) - before)
            if self._stop.wait(0.005):
                return


def work(options: argparse.Namespace) -> None:
    """One process: loads its share and prints a row of the table."""
    import jax
    import jax.numpy as jnp

    from pea_jax.models.rngs import OneKey
    from pea_jax.models.unet.unet import UNet
    from pea_jax.runtime import parallel, processes
    from pea_jax.weights.bases import read_base_config
    from pea_jax.weights.load import load_module
    from pea_jax.weights.locate import fetch_weights

    processes.initialize()
    mesh = parallel.make_mesh(data=1, fsdp=DEVICES)
    config = read_base_config(options.base)
    files = fetch_weights(options.base, {"unet": config.stems["unet"]})["unet"]
    size = sum(file.stat().st_size for file in files)
    with Peak() as peak:
        start = time.perf_counter()
        unet = load_module(
            lambda: UNet(config.unet, rngs=OneKey(), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16),
            files,
            sharding=parallel.parameter_sharding(mesh),
        )
        leaves = jax.block_until_ready(jax.tree.leaves(unet))
        seconds = time.perf_counter() - start
    own = sum(
        shard.data.nbytes
        for leaf in leaves
        if isinstance(leaf, jax.Array)
        for shard in leaf.addressable_shards
    )
    figures = (size, own, peak.grown["RssAnon"], peak.grown["RssAnon"] - own, peak.grown["RssFile"])
    cells = [f"{value / 1e9:.2f}" for value in figures]
    process = f"{processes.process_index() + 1} of {processes.process_count()}"
    print(f"| {process} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", help="a folder in diffusers' format, or an id on the Hub")
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2, 4, 8))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    print("| process | file GB | own GB | peak GB | beyond own GB | mapped GB | seconds |")
    print("|---|---|---|---|---|---|---|", flush=True)
    local = DEVICES // options.processes
    shared = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={local}",
    }
    workers = []
    for index in range(options.processes):
        joined = {
            "JAX_COORDINATOR_ADDRESS": "localhost:12355",
            "JAX_NUM_PROCESSES": str(options.processes),
            "JAX_PROCESS_ID": str(index),
        }
        environment = shared | (joined if options.processes > 1 else {})
        command = [sys.executable, __file__, options.base, "--worker"]
        workers.append(subprocess.Popen(command, env=environment))
    statuses = [worker.wait() for worker in workers]
    if any(statuses):
        sys.exit(f"expected exit status 0 from every process, got {statuses}")


if __name__ == "__main__":
    main()
