"""Runs one command in several processes on this machine, joined like those of several hosts."""

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
    """Running processes; leaving the context kills those that are still running.

    Attributes:
        processes: ordered by process index.
        logs: file with standard output and error of each process.
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
        """Waits for all processes and returns their exit statuses.

        Raises:
            subprocess.TimeoutExpired: a process is still running after `seconds`.
        """
        end = time.monotonic() + seconds
        return [process.wait(max(0.0, end - time.monotonic())) for process in self.processes]

    def kill(self, index: int, number: int = signal.SIGKILL) -> None:
        """Sends a signal to one process."""
        self.processes[index].send_signal(number)

    def output(self, index: int = 0) -> str:
        """What one process has printed so far."""
        return self.logs[index].read_text("utf-8", errors="replace")


def start(
    arguments: Sequence[str],
    *,
    processes: int,
    devices: int,
    environment: Mapping[str, str] | None = None,
    module: str = "pea_jax",
) -> Several:
    """Starts `pea-jax ARGUMENTS` in several processes.

    Args:
        arguments: of the command line.
        processes: number of processes; a single one runs without jax.distributed.
        devices: number of virtual CPU devices per process.
        environment: additional environment variables.
        module: module to run instead of pea_jax.
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
