"""The processes of a run, one per host: how they join, wait for each other and agree."""

import os
import threading
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost as ocp_multihost

#: Set by hand for each process of a run.
_BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

#: What launchers set where they start several processes: Slurm, Open MPI, Cloud TPU on GKE.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES")

#: Seconds: longer than any process works between two places where it waits for the others.
_A_DAY = 24 * 60 * 60


def initialize(
    *,
    distributed: bool | None = None,
    preemptible: bool = False,
    join_timeout: int = 300,
    heartbeat_timeout: int = 60,
) -> None:
    """Join the other processes of the run, before any device is touched; alone it does nothing.

    A process must neither train a model of its own nor wait for ever. Where not all processes join
    in time, each exits with one line and status 1. A process that loses the others later is ended
    by jax within the heartbeat timeout.

    Args:
      distributed: True joins, by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID if
        they are set, else by jax's own detection on TPU pods, Slurm, Open MPI and Kubernetes. False
        runs alone, whatever the environment says. None joins where the three are set.
      preemptible: whether SIGTERM is a notice that `preempted` spreads to all processes, rather
        than the end of this one.
      join_timeout: seconds within which all processes must join.
      heartbeat_timeout: seconds after which a silent process counts as dead.

    Raises:
      ValueError: only some of the three are set; or the environment is that of one process of
        several, and `distributed` is None.
      OSError: there is nothing to join.
    """
    by_hand = {name: os.environ[name] for name in _BY_HAND if os.environ.get(name)}
    if distributed is None and not by_hand:
        _refuse_several()
    if distributed is False or (distributed is None and not by_hand):
        return
    if by_hand and len(by_hand) < len(_BY_HAND):
        raise ValueError(f"expected all of {', '.join(_BY_HAND)} in the environment, got {by_hand}")
    where: dict[str, Any] = {}
    who = ""
    if by_hand:
        address, count, index = by_hand.values()
        where = {
            "coordinator_address": address,
            "num_processes": _number(_BY_HAND[1], count),
            "process_id": _number(_BY_HAND[2], index),
            "cluster_detection_method": "deactivate",
        }
        who = f"process {index} of {count} at {address}: "
    jax.config.update("jax_enable_preemption_service", preemptible)
    # jax ends the process on its own timeout, with many lines: this one comes before it.
    alarm = threading.Timer(join_timeout, _exit_unjoined, [who, join_timeout])
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(
            **where,
            initialization_timeout=join_timeout + 60,
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=heartbeat_timeout,
        )
    except (ValueError, RuntimeError) as error:
        raise OSError(
            f"cannot join the other processes: expected a TPU pod, Slurm, Open MPI, Kubernetes, or "
            f"{', '.join(_BY_HAND)} in the environment ({error})"
        ) from error
    finally:
        alarm.cancel()


def _exit_unjoined(who: str, seconds: int) -> None:
    line = f"pea-jax: {who}not all processes of the run came within {seconds} s\n"
    os.write(2, line.encode())
    os._exit(1)


def _refuse_several() -> None:
    """Refuse to run alone what a launcher started on several hosts: each would train a model."""
    several = {
        name: value
        for name in _COUNTS
        if (value := os.environ.get(name))
        and (value.count(",") if name == "TPU_WORKER_HOSTNAMES" else value != "1")
    }
    if several:
        names = ", ".join(f"{name}={value}" for name, value in several.items())
        raise ValueError(
            f"this is one process of several ({names}): give --distributed to join them, or "
            "--no-distributed to run it alone"
        )


def _number(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{name}: expected a number, got {value!r}") from None


def is_distributed() -> bool:
    """Whether `initialize` joined other processes (or one process to itself)."""
    return jax.distributed.is_initialized()


def process_index() -> int:
    """The number of this process, from 0."""
    return jax.process_index()


def process_count() -> int:
    """The number of processes of the run."""
    return jax.process_count()


def preempted(call: int) -> bool:
    """Whether all processes must stop after this step, because one of them got SIGTERM.

    Every process calls it at every step, with numbers that count up from 1. It is True on all of
    them at the same number, soon after the signal.
    """
    return is_distributed() and multihost_utils.reached_preemption_sync_point(call)


def wait_for_all(name: str) -> None:
    """Block until every process has called this with the same `name`.

    Devices keep computing. Heartbeats detect a process that never comes.
    """
    ocp_multihost.get_barrier_sync_fn()(key=name, timeout_ms=_A_DAY * 1000)


def gather(value: int) -> list[int]:
    """The `value` of every process, in their order; all of them call this together."""
    if process_count() == 1:
        return [value]
    return multihost_utils.process_allgather(np.int32(value)).tolist()


def of_first(values: Sequence[int]) -> list[int]:
    """The `values` of the first process, on all of them; all call this together."""
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(values))))
    mine = np.resize(np.array([*values, 0], np.int32), count)
    return multihost_utils.broadcast_one_to_all(mine).tolist()
