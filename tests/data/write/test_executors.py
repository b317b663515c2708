import functools
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from pea_jax.data.write import builder, executors
from pea_jax.data.write.parts import BuildPart, ShardPart
from tests.data import sets, shards

#: Beam's local runner. With unsafe triggers allowed, of which there are none, it does not fetch a
#: program from the network to run pipelines with.
LOCAL = "runner=DirectRunner,allow_unsafe_triggers"


@pytest.fixture
def expected(tmp_path) -> dict[str, bytes]:
    folder = builder.build(tmp_path / "expected", "small", shards.splits(), recipe={})
    return shards.contents(folder)


def build(place: Path, run: executors.Executor, **wrong: int) -> Path:
    splits = shards.splits(place.with_name("diary"), **wrong)
    return builder.build(place, "small", splits, recipe={}, run=run)


def runs(process: int) -> bool:
    """Whether a process is there, and no zombie that init has still to bury."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def waited(true, seconds: float = 60.0) -> bool:
    """Whether something becomes true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.05)
    return False


def test_several_processes_make_the_same_set(tmp_path, expected):
    folder = build(tmp_path / "data", executors.processes(2))
    assert shards.contents(folder) == expected
    assert os.listdir(folder.parent) == ["1.0.0"]
    workers = shards.workers(tmp_path / "diary")
    assert len(workers) == 2
    assert os.getpid() not in workers
    assert not any(map(runs, workers))


def test_more_processes_than_parts_do_no_harm(tmp_path, expected):
    assert shards.contents(build(tmp_path / "data", executors.processes(9))) == expected
    with pytest.raises(ValueError, match="at least 1 process, got 0"):
        executors.processes(0)


def test_what_a_shard_raises_in_a_worker_is_raised_here_and_ends_the_others(tmp_path, expected):
    with pytest.raises(ValueError, match="shard 2 is broken") as error:
        build(tmp_path / "data", executors.processes(2), fail=1)
    assert str(error.value) == "shard 2 is broken"
    assert "in rows" in "".join(error.value.__notes__), "where it was raised is kept"
    assert not any(map(runs, shards.workers(tmp_path / "diary")))
    assert not list(tmp_path.glob("data/small/unfinished*/.*")), "drafts are removed"
    done = {file.parent.name for file in tmp_path.glob("data/small/unfinished*/*/report.json")}
    (tmp_path / "diary").unlink()
    assert shards.contents(build(tmp_path / "data", executors.processes(2))) == expected
    again = {f"train-{number:05d}" for number in shards.read(tmp_path / "diary", "begin")}
    assert again.isdisjoint(done)


def test_a_worker_that_dies_is_reported_with_its_part(tmp_path, expected):
    with pytest.raises(executors.WorkerError, match=r"ended by signal 9 .* over part train-00002"):
        build(tmp_path / "data", executors.processes(2), die=2)
    assert not any(map(runs, shards.workers(tmp_path / "diary")))
    assert shards.contents(build(tmp_path / "data", executors.serial)) == expected


def test_an_error_that_cannot_be_sent_is_reported(tmp_path):
    splits = {"train": [_raises_what_cannot_be_pickled, functools.partial(shards.rows, 0, None)]}
    with pytest.raises(RuntimeError, match=r"OddError: one and two"):
        builder.build(tmp_path, "small", splits, run=executors.processes(1))


def _raises_what_cannot_be_pickled():
    class OddError(Exception):
        pass

    raise OddError("one and two")
    yield


@pytest.mark.parametrize(
    "others",
    [
        executors.processes,
        pytest.param(lambda _: executors.on_beam([]), marks=pytest.mark.beam, id="beam"),
    ],
)
def test_a_shard_that_cannot_be_pickled_is_reported(tmp_path, others):
    splits = {"train": [lambda: [sets.row(1)]]}
    with pytest.raises(ValueError, match=r"part train-00000 .* can't be pickled: .*lambda"):
        builder.build(tmp_path, "small", splits, run=others(1))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_first_process(tmp_path, how, expected):
    program = """
        import signal
        import sys
        from pathlib import Path
        from pea_jax.data.write import executors
        from tests.data.write.test_executors import build

        if __name__ == "__main__":
            # A shell's background jobs pass it by.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            build(Path(sys.argv[1]), executors.processes(2), wait=1)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "data")]
    # In a session of its own: Ctrl-C in a terminal goes to all of them.
    first = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    diary = tmp_path / "diary"
    assert waited(lambda: shards.read(diary, "wait") == [2] and len(shards.workers(diary)) == 2)
    if how == signal.SIGINT:
        os.killpg(first.pid, how)
    else:
        first.send_signal(how)
    errors = first.communicate()[1].decode()
    assert first.returncode != 0
    assert waited(lambda: not any(map(runs, shards.workers(diary))), 20), errors
    assert errors.count("KeyboardInterrupt") == (how == signal.SIGINT), errors
    assert not list(tmp_path.glob("data/small/unfinished*/.*")), "drafts are removed"
    assert shards.contents(build(tmp_path / "data", executors.serial)) == expected


@pytest.mark.beam
@pytest.mark.parametrize("workers", [0, 2])
def test_beam_makes_the_same_set(tmp_path, expected, workers):
    others = f",direct_running_mode=multi_processing,direct_num_workers={workers}"
    options = executors.beam_options(LOCAL + (others if workers else ""))
    folder = build(tmp_path / "data", executors.on_beam(options))
    assert shards.contents(folder) == expected
    assert os.listdir(folder.parent) == ["1.0.0"]
    assert (os.getpid() in shards.workers(tmp_path / "diary")) == (not workers)


@pytest.mark.beam
def test_what_a_shard_raises_on_beam_is_reported_in_a_line_and_the_rest_goes_on(tmp_path, expected):
    with pytest.raises(executors.WorkerError, match=r"failed: .*shard 2 is broken") as error:
        build(tmp_path / "data", executors.on_beam(executors.beam_options(LOCAL)), fail=1)
    assert "\n" not in str(error.value)
    done = {file.parent.name for file in tmp_path.glob("data/small/unfinished*/*/report.json")}
    assert "train-00000" in done
    (tmp_path / "diary").unlink()
    run = executors.on_beam(executors.beam_options(LOCAL))
    assert shards.contents(build(tmp_path / "data", run)) == expected
    assert 0 not in shards.read(tmp_path / "diary", "begin")


@pytest.mark.beam
def test_parts_that_beams_workers_wrote_elsewhere_are_missed(tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "_do", lambda number, packed: number)
    jobs = [
        BuildPart(
            ShardPart(str(tmp_path), f"train-{number}"), functools.partial(shards.rows, 0, None)
        )
        for number in range(3)
    ]
    run = executors.on_beam(executors.beam_options(LOCAL))
    with pytest.raises(executors.WorkerError, match=r"3 of 3 parts are not in .*that all share"):
        list(run(jobs))


def test_beam_is_asked_for_where_it_is_missing(monkeypatch):
    real = executors.importlib.util.find_spec
    missing = lambda name: None if name == "apache_beam" else real(name)  # noqa: E731
    monkeypatch.setattr(executors.importlib.util, "find_spec", missing)
    with pytest.raises(ValueError, match=r"pip install 'pea-jax\[beam\]'"):
        executors.on_beam([])


@pytest.mark.beam
def test_options_that_beam_does_not_know_are_refused():
    for text, message in [
        ("runer=DataflowRunner,project=x,odd", "knows no odd, no runer"),
        ("num_workers=many", "num_workers.*invalid int value.*many"),
    ]:
        with pytest.raises(ValueError, match=f"options of Beam: .*{message}"):
            executors.on_beam(executors.beam_options(text))


def test_options_of_beam_are_read_as_tfds_reads_them():
    text = "runner=DataflowRunner,project=a-b,experiments=x=1,experiments=y,streaming"
    assert executors.beam_options(text) == [
        "--runner=DataflowRunner",
        "--project=a-b",
        "--experiments=x=1",
        "--experiments=y",
        "--streaming",
    ]
    for text in ("", "a=1,,b=2", "--runner=x", "runner=x, project=y"):
        with pytest.raises(ValueError, match="expected NAME=VALUE"):
            executors.beam_options(text)
