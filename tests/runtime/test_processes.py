"""How processes join, and when one refuses to run alone."""

import jax
import pytest

from pea_jax.runtime import processes

ALONE = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
ALONE += ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES")


@pytest.fixture
def joined(monkeypatch):
    """The arguments of jax.distributed.initialize, which does nothing; no launcher is set."""
    for name in ALONE:
        monkeypatch.delenv(name, raising=False)
    seen = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **keywords: seen.append(keywords))
    yield seen
    jax.config.update("jax_enable_preemption_service", True)


def test_processes_are_joined_by_hand_or_by_what_jax_finds(joined, monkeypatch):
    processes.initialize()
    processes.initialize(distributed=False)
    assert joined == []
    processes.initialize(distributed=True, heartbeat_timeout=7)
    assert "coordinator_address" not in joined[0]
    assert joined[0]["heartbeat_timeout_seconds"] == 7
    for name, value in zip(ALONE, ("host:1", "4", "2"), strict=False):
        monkeypatch.setenv(name, value)
    processes.initialize()
    names = ("coordinator_address", "num_processes", "process_id")
    assert [joined[1][name] for name in names] == ["host:1", 4, 2]
    monkeypatch.setenv("JAX_PROCESS_ID", "two")
    with pytest.raises(ValueError, match="JAX_PROCESS_ID: expected a number, got 'two'"):
        processes.initialize()
    monkeypatch.delenv("JAX_PROCESS_ID")
    with pytest.raises(ValueError, match="expected all of JAX_COORDINATOR_ADDRESS, "):
        processes.initialize()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLURM_STEP_NUM_TASKS", "4"),
        ("OMPI_COMM_WORLD_SIZE", "2"),
        ("TPU_WORKER_HOSTNAMES", "a,b"),
    ],
)
def test_one_of_several_does_not_train_alone_by_accident(joined, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=rf"one process of several \({name}={value}\)"):
        processes.initialize()
    processes.initialize(distributed=False)
    assert joined == []
    monkeypatch.setenv(name, "a" if "HOST" in name else "1")
    processes.initialize()
    assert joined == []


def test_one_process():
    assert (processes.process_index(), processes.process_count()) == (0, 1)
