"""Several processes of one command on this machine, joined as those of several hosts are."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Several:
    """Processes that run; leaving its context kills those that still do.

    Attributes:
        processes: in the order of their indices.
        logs: what each printed, standard error and output together.
    """

    def __init__(self, processes: list[subprocess.Popen], logs: list[Path]):
        self.processes, self.logs = processes, logs

    def __enter__(self) -> "Several":
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def wait(self, seconds: float) -> list[int]:
        """The exit statuses, once all have ended.

        Raises:
            subprocess.TimeoutExpired: one has not ended after so many seconds.
        """
        end = time.monotonic() + seconds
        return [process.wait(max(0.0, end - time.monotonic())) for process in self.processes]

    def kill(self, index: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to one of them."""
        self.processes[index].send_signal(number)

    def told(self, index: int = 0) -> str:
        """What one of them has printed so far."""
        return self.logs[index].read_text("utf-8", errors="replace")


def start(
    arguments: Sequence[str],
    *,
    processes: int,
    devices: int,
    environment: Mapping[str, str] | None = None,
    module: str = "pea_jax",
) -> Several:
    """Starts `pea-jax ARGUMENTS` in so many processes, each with so many virtual CPU devices.

    One process alone is not joined to anything, as on a single machine. Another module may take the
    place of `pea-jax`.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="several-"))
    running, logs = [], []
    for index in range(processes):
        joined = {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(index),
        }
        variables = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            **(joined if processes > 1 else {}),
            **(environment or {}),
        }
        logs.append(folder / f"{index}.log")
        with logs[-1].open("wb") as log:
            running.append(
                subprocess.Popen(
                    [sys.executable, "-m", module, *arguments],
                    env=variables,
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return Several(running, logs)
