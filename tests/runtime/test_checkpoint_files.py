"""A checkpoint that lost something is never used: the one before is, and a line says so."""

import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from pea_jax.assembly import model_factory
from pea_jax.runtime import checkpoint, checkpoint_files, storage
from tests.runtime.test_checkpoint import ADAPTER, blank, make_state, numbers, save


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A workdir with the checkpoints of steps 2 and 5."""
    workdir = tmp_path_factory.mktemp("whole")
    save(workdir, [2, 5])
    return workdir


@pytest.fixture
def workdir(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "run")


def restored(workdir: Path) -> tuple[int, list[str]]:
    """The step that training goes on from, after checking every bit of it; and the warnings."""
    with checkpoint.Checkpointer(workdir) as checkpoints, warnings.catch_warnings(record=True) as w:
        warnings.simplefilter("always", checkpoint_files.DamagedCheckpointWarning)
        iterator = numbers()
        state = checkpoints.restore(blank(make_state(1)), iterator, seed=7)
        step = checkpoints.latest_step
    jax.tree.map(np.testing.assert_array_equal, state, make_state(step))
    assert next(iterator) == list(numbers())[step]
    return step, [str(one.message) for one in w]


def loaded(workdir: Path) -> int:
    """The step that sample, evaluate and export read, after checking every bit of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", checkpoint_files.DamagedCheckpointWarning)
        adapter, step = model_factory.load_trained_adapter(workdir)
    expected = make_state(step).ema
    np.testing.assert_array_equal(adapter.layernorm.scale[...], expected.layernorm.scale[...])
    return step


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def braces(file: Path) -> None:
    file.write_text("{}")


#: Files of a checkpoint whose values are read: without them there is no checkpoint.
NEEDED = [
    "_CHECKPOINT_METADATA",
    "meta/metadata",
    "data/process_0-of-1.json",
    "adapter/_METADATA",
    "adapter/manifest.ocdbt",
    "ema/manifest.ocdbt",
    "optimizer/_METADATA",
    "optimizer/manifest.ocdbt",
]


@pytest.mark.parametrize("harm", [cut, empty, Path.unlink])
@pytest.mark.parametrize("name", NEEDED)
def test_a_checkpoint_with_a_damaged_file_is_passed_over(workdir, name, harm):
    harm(workdir / "checkpoints" / "00000005" / name)
    step, (warning,) = restored(workdir)
    assert step == 2
    assert "checkpoints/00000005 is damaged (" in warning
    assert "going on from step 2" in warning
    assert "\n" not in warning


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "meta/metadata"])
def test_json_without_its_fields_is_damage(workdir, name):
    braces(workdir / "checkpoints" / "00000005" / name)
    assert restored(workdir)[0] == 2


@pytest.mark.parametrize("harm", [cut, empty, Path.unlink])
def test_no_file_can_be_damaged_without_being_noticed_or_harmless(whole, tmp_path, harm):
    # What comes back is step 5, every bit of it, or step 2: never something between.
    folder = Path("checkpoints", "00000005")
    names = [file.relative_to(whole) for file in storage.files(whole / folder)]
    noticed = set()
    for number, name in enumerate(names):
        workdir = shutil.copytree(whole, tmp_path / str(number))
        harm(workdir / name)
        if loaded(workdir) == 2:
            noticed.add(name.relative_to(folder).as_posix())
        if restored(workdir)[0] == 2:
            noticed.add(name.relative_to(folder).as_posix())
    assert noticed >= set(NEEDED)
    values = {name.as_posix() for name in names if "/d/" in name.as_posix()}
    assert len([n for n in noticed if "/d/" in n]) >= 3, values


@pytest.mark.parametrize("item", ["adapter", "ema", "optimizer", "data", "meta"])
def test_a_checkpoint_without_an_item_is_passed_over(workdir, item):
    shutil.rmtree(workdir / "checkpoints" / "00000005" / item)
    # Not the plain adapter in place of the average that is gone.
    assert loaded(workdir) == 2
    step, (warning,) = restored(workdir)
    assert step == 2
    assert f"without {item}" in warning


def test_the_damaged_step_is_kept_aside_and_saved_again(workdir):
    cut(workdir / "checkpoints" / "00000005" / "meta" / "metadata")
    left = (workdir / "checkpoints" / "00000005" / "meta" / "metadata").read_bytes()
    for count in ("", ".2"):
        with checkpoint.Checkpointer(workdir) as checkpoints:
            with pytest.warns(checkpoint_files.DamagedCheckpointWarning):
                checkpoints.restore(blank(make_state(1)), numbers(), seed=7)
            assert checkpoints.steps == (2,)
            assert checkpoints.save(5, make_state(5), numbers(), adapter=ADAPTER, seed=7)
        assert (workdir / "damaged" / f"00000005{count}" / "meta" / "metadata").read_bytes() == left
        assert loaded(workdir) == 5
        cut(workdir / "checkpoints" / "00000005" / "meta" / "metadata")


def test_load_adapter_changes_nothing_and_does_not_stand_in_for_a_step_asked_for(workdir):
    empty(workdir / "checkpoints" / "00000005" / "meta" / "metadata")
    with pytest.warns(checkpoint_files.DamagedCheckpointWarning, match="00000005 is damaged"):
        assert model_factory.load_trained_adapter(workdir)[1] == 2
    assert checkpoint_files.steps(workdir) == [2, 5]
    with pytest.raises(checkpoint_files.DamagedError, match=r"no checkpoint is whole \(step 5: "):
        model_factory.load_trained_adapter(workdir, step=5)


def test_where_no_checkpoint_is_whole_nothing_starts_anew(workdir):
    for step in ("00000002", "00000005"):
        empty(workdir / "checkpoints" / step / "meta" / "metadata")
    with checkpoint.Checkpointer(workdir) as checkpoints:
        with pytest.raises(ValueError, match=r"no checkpoint is whole \(step 5: .*; step 2: "):
            checkpoints.restore(blank(make_state(1)), numbers(), seed=7)
        assert checkpoints.steps == (2, 5)
    assert not (workdir / "damaged").exists()


def test_another_run_is_no_damage(workdir):
    other = blank(make_state(1))
    other.params["layernorm"]["scale"] = jax.numpy.zeros(99)
    with checkpoint.Checkpointer(workdir) as checkpoints:
        with pytest.raises(ValueError, match="expected seed 8, got 7"):
            checkpoints.restore(blank(make_state(1)), numbers(), seed=8)
        with pytest.raises(ValueError, match=r"another form \(layernorm/scale.*99"):
            checkpoints.restore(other, numbers(), seed=7)
        assert checkpoints.steps == (2, 5)


def test_a_storage_that_does_not_answer_is_no_damage(workdir, monkeypatch):
    def read(folder: Path) -> dict:
        raise OSError(5, "Input/output error", str(folder))

    monkeypatch.setattr(checkpoint_files, "read_meta", read)
    with checkpoint.Checkpointer(workdir) as checkpoints:
        with pytest.raises(OSError, match="Input/output error"):
            checkpoints.restore(blank(make_state(1)), numbers(), seed=7)
        assert checkpoints.steps == (2, 5)


class Hosts(Iterator):
    """An iterator whose hosts' states are merged, as those of the data pipeline are."""

    def merge_states(self, states: list[dict]) -> dict:
        assert len({state["step"] for state in states}) == 1, "another step"
        return {"step": states[0]["step"], "hosts": len(states)}

    def __next__(self) -> None:
        raise StopIteration

    def set_state(self, state: dict) -> None:
        self.state = state


@pytest.fixture
def of_hosts(workdir) -> Callable[[list[int]], Path]:
    def write(steps: list[int]) -> Path:
        folder = workdir / "checkpoints" / "00000005" / "data"
        for file in folder.glob("process_*"):
            file.unlink()
        for i, step in enumerate(steps):
            state = json.dumps({"step": step})
            (folder / f"process_{i}-of-{len(steps)}.json").write_text(state)
        return folder

    return write


def test_the_states_of_any_number_of_hosts_are_handed_over_together(workdir, of_hosts):
    for count in (1, 2, 3):
        of_hosts([5] * count)
        with checkpoint.Checkpointer(workdir) as checkpoints:
            hosts = Hosts()
            checkpoints.restore(blank(make_state(1)), hosts, seed=7)
        assert hosts.state == {"step": 5, "hosts": count}


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_state_of_a_host_that_is_missing_is_damage(workdir, of_hosts, number):
    (of_hosts([5, 5, 5]) / f"process_{number}-of-3.json").unlink()
    with pytest.raises(checkpoint_files.DamagedError, match="not the states of all processes"):
        checkpoint_files.read_data_states(workdir / "checkpoints" / "00000005")


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond 100 bytes: as at the end of a disk, writing fails half way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("seen_by", ["wait", "save", "exit"])
def test_a_checkpoint_that_does_not_fit_is_reported_and_the_one_before_stays(workdir, seen_by):
    def write(stack: contextlib.ExitStack) -> None:
        checkpoints = stack.enter_context(checkpoint.Checkpointer(workdir, keep=1))
        with full_disk():
            checkpoints.save(8, make_state(8), numbers(), adapter=ADAPTER, seed=7)
            if seen_by == "wait":
                checkpoints.wait()
            elif seen_by == "save":
                checkpoints.save(9, make_state(9), numbers(), adapter=ADAPTER, seed=7)
            else:
                stack.close()

    refused = pytest.raises(checkpoint.SaveError, match="checkpoint of step 8")
    with refused as error, contextlib.ExitStack() as stack:
        write(stack)
    assert "could not be written (" in str(error.value)
    assert "File too large" in str(error.value)
    assert "\n" not in str(error.value)
    # Not even with keep=1 was the one before deleted; nor is what there is of the new one used.
    assert loaded(workdir) == 5
    assert restored(workdir) == (5, [])


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_save(workdir, caplog):
    def run() -> None:
        with full_disk(), checkpoint.Checkpointer(workdir) as checkpoints:
            checkpoints.save(8, make_state(8), numbers(), adapter=ADAPTER, seed=7)
            raise FloatingPointError("step 9: not finite")

    with pytest.raises(FloatingPointError, match="not finite"):
        run()
    assert "checkpoint of step 8 could not be written" in caplog.text
    assert loaded(workdir) == 5


def together(count: int, harm: str, workdir: Path) -> list[dict]:
    """What `count` processes that restore together come to."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.restore_together"]
    started = [
        subprocess.Popen(
            [*command, str(number), str(count), str(port), harm, str(workdir)],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in started]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def test_processes_decide_together_and_any_number_goes_on(tmp_path):
    # Two processes save the steps 2 and 5; the second alone finds 5 damaged, and both go on from 2.
    first, second = together(2, "damage", tmp_path)
    bad = {"0": "cut", "1": "cut"}
    for outcome in (first, second):
        assert (outcome["step"], outcome["steps"]) == (2, [2, 5])
        assert outcome["data"] == {"step": 2, "bad": bad}
        assert len(outcome["warnings"]) == 1
    assert "(process 1 cannot read it): going on from step 2" in first["warnings"][0]
    assert "(meta: cut): going on from step 2" in second["warnings"][0]
    assert (tmp_path / "damaged" / "00000005").is_dir()
    # A disk that does not answer to one of them is an error of both, and moves nothing.
    first, second = together(2, "fault", tmp_path)
    assert "process 1 cannot read it" in first["error"]
    assert "Input/output error" in second["error"]
    # One process goes on from what two saved.
    (alone,) = together(1, "none", tmp_path)
    assert (alone["step"], alone["steps"], alone["warnings"]) == (5, [2, 5], [])
    assert alone["data"] == {"step": 5, "bad": bad}
