"""A stopped run differs from a finished one, and signals reach it."""

import json
import signal
import subprocess
import sys

import pytest

from tests.launch.conftest import ROOT

SUPERVISE = [sys.executable, ROOT / "launch" / "supervise.py"]
STEPS = 10


def write_run(workdir, *steps):
    for step in steps:
        (workdir / "checkpoints" / str(step)).mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps({"train": {"steps": STEPS}}), "utf-8")


def status(*words):
    return subprocess.run([*SUPERVISE, *words], capture_output=True, check=False).returncode


@pytest.mark.parametrize(
    ("steps", "finished"),
    [([], False), ([5], False), ([5, STEPS], True), ([9], False), ([STEPS + 5], True)],
)
def test_finished_is_the_checkpoint_of_the_last_step(tmp_path, steps, finished):
    write_run(tmp_path, *steps)
    # Orbax writes beside a checkpoint's place, under a longer name, until it is whole.
    (tmp_path / "checkpoints" / f"{STEPS}.orbax-checkpoint-tmp").mkdir(parents=True)
    expected = 0 if finished else 75
    assert status("--finished", tmp_path) == expected
    assert status("true", "--workdir", tmp_path) == expected
    assert status("true", f"--workdir={tmp_path}") == expected


def test_a_workdir_without_a_run_is_not_finished(tmp_path):
    assert status("--finished", tmp_path / "none") == 75


def test_the_status_of_a_failure_stays(tmp_path):
    write_run(tmp_path, STEPS)
    words = ["--workdir", tmp_path]
    assert status("bash", "-c", "exit 2", *words) == 2
    assert status("bash", "-c", "kill -KILL $$", *words) == 128 + 9


@pytest.mark.parametrize("words", [[], ["true"], ["--finished"], ["true", "--workdir"]])
def test_a_command_line_that_cannot_be(words):
    assert status(*words) == 2


def test_sigterm_is_handed_on_and_waited_for(tmp_path):
    write_run(tmp_path, 5)
    program = f"""
import pathlib, signal, sys, time
def save(*_):
    time.sleep(0.5)
    pathlib.Path({str(tmp_path)!r}, "saved").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
"""
    command = [*SUPERVISE, sys.executable, "-c", program, "--workdir", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 75
    assert (tmp_path / "saved").exists()
