"""slurm_gpu.sbatch against an srun and an scontrol that record what they are given."""

import subprocess
import sys

import pytest

from tests.launch.conftest import ROOT
from tests.launch.test_supervise import STEPS, write_run

BATCH = ROOT / "launch" / "slurm_gpu.sbatch"


@pytest.fixture
def batch(stand_ins, tmp_path):
    """Run the script as Slurm would, in a job, with an environment that has pea-jax."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    for name in ("python", "pea-jax"):
        program = tmp_path / "venv" / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', "utf-8")
        program.chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "96"}
    settings = job | {"VENV": str(tmp_path / "venv")}
    return lambda *words: stand_ins.run("bash", BATCH, *words, **settings)


def test_one_task_a_node_with_all_its_gpus(batch, stand_ins, tmp_path):
    write_run(tmp_path, STEPS)
    words = ["--config", "configs/sdxl_zh.py", "--workdir", str(tmp_path), "--config.a=it's 一只"]
    done = batch(*words)
    assert done.returncode == 0, done.stderr
    (step,) = stand_ins.calls
    start = ["srun", "--ntasks-per-node=1", "--cpus-per-task=96"]
    assert step[:5] == [*start, "--kill-on-bad-exit=0", "--wait=300"]
    shell, program = step[5:9], step[9:]
    assert program == [str(tmp_path / "venv/bin/pea-jax"), "train", "--distributed", *words]
    # What a task does: it says which GPUs it has, and becomes the program.
    task = subprocess.run(
        [*shell, "printenv", "JAX_LOCAL_DEVICE_IDS"],
        env={"PATH": "/usr/bin:/bin", "SLURM_GPUS_ON_NODE": "4"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert task.stdout == "0,1,2,3\n"


def test_a_run_that_was_stopped_goes_back_into_the_queue(batch, stand_ins, tmp_path):
    write_run(tmp_path, STEPS - 1)
    assert batch("--workdir", tmp_path).returncode == 0
    assert stand_ins.calls[1:] == [["scontrol", "requeue", "7"]]


def test_a_run_that_failed_does_not(batch, stand_ins, tmp_path):
    write_run(tmp_path, STEPS - 1)
    stand_ins.answer(("pea-jax", 5))
    assert batch("--workdir", tmp_path).returncode == 5
    assert [call[0] for call in stand_ins.calls] == ["srun"]


def test_a_dry_run_prints_what_would_be_run(batch, stand_ins, tmp_path):
    dry = batch("--dry-run", "--workdir", tmp_path)
    assert dry.returncode == 0, dry.stderr
    assert not stand_ins.calls
    write_run(tmp_path, STEPS - 1)
    assert batch("--workdir", tmp_path).returncode == 0
    assert "scontrol requeue" in dry.stdout
    assert "--finished" in dry.stdout
    # The step is printed over the lines of what its tasks do.
    step = dry.stdout.split("\n# unless")[0]
    printed = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {step}"], capture_output=True, text=True, check=True
    )
    assert printed.stdout.split("\0")[:-1] == stand_ins.calls[0]


@pytest.mark.parametrize("words", [[], ["--workdir"], ["--config", "configs/sdxl_zh.py"]])
def test_a_workdir_is_needed(batch, stand_ins, words):
    done = batch(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("slurm_gpu.sbatch: expected the arguments of pea-jax train")
    assert not stand_ins.calls


def test_what_it_asks_slurm_for():
    lines = BATCH.read_text("utf-8").splitlines()
    asked = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    # To the tasks, not B: to the shell, which srun would not hand on.
    assert "--signal=TERM@300" in asked
    assert {"--requeue", "--ntasks-per-node=1", "--open-mode=append"} <= asked
    # Slurm stops reading at the first command.
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])
