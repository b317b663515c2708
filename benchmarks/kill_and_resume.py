"""Kills processes of a run at random moments, resumes the run, and compares its adapter.

    python benchmarks/kill_and_resume.py [--runs 20] [--processes 2] [--steps 24] [--seed 0]

Each run trains configs/tiny_zh.py in several real processes. At a random moment, one process or all
processes receive kill -9; in every second run this happens while a checkpoint is being written. The
other processes must exit by themselves with a non-zero status within the heartbeat timeout. The
same command then finishes the run. Exits with 1 if the adapter is not bit-equal to that of an
uninterrupted run.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import several
from pea_jax.assembly import model_factory
from pea_jax.runtime import checkpoint

HEARTBEAT = 20


def adapter(workdir: Path) -> list[np.ndarray]:
    """Every parameter of the latest checkpoint."""
    module, _ = model_factory.load_trained_adapter(workdir)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(module))]


def saving(workdir: Path) -> bool:
    """Whether a checkpoint is being written."""
    folder = workdir / checkpoint.CHECKPOINTS
    return folder.exists() and any("tmp" in entry.name for entry in folder.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    choose = random.Random(options.seed)
    fields = {
        "data.batch_size": 4 * options.processes,
        "data.native_batch_size": 2 * options.processes,
        "train.steps": options.steps,
        "train.save_every": 2,
        "train.log_every": 1,
        "train.sample_every": 0,
        "mesh.heartbeat_timeout": HEARTBEAT,
    }

    def start(workdir: Path) -> several.Several:
        command = ["train", "--config", str(several.ROOT / "configs" / "tiny_zh.py")]
        command += ["--workdir", str(workdir)]
        command += [f"--config.{name}={value}" for name, value in fields.items()]
        return several.start(command, processes=options.processes, devices=1)

    def finish(workdir: Path) -> None:
        with start(workdir) as run:
            if any(run.wait(1800)):
                sys.exit("\n".join(run.output(index) for index in range(options.processes)))

    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        straight = Path(folder, "straight")
        finish(straight)
        wanted = adapter(straight)
        print("| run | killed | when | at step | others ended after s | adapter |")
        print("|---|---|---|---|---|---|", flush=True)
        for number in range(options.runs):
            workdir = Path(folder, str(number))
            whom = choose.choice(["all", *map(str, range(options.processes))])
            step, pause = choose.randint(1, options.steps - 2), choose.random() * 0.1
            while_saving = number % 2 == 1
            with start(workdir) as run:
                while f"step {step}/" not in run.output() or (while_saving and not saving(workdir)):
                    if run.processes[0].poll() is not None:
                        sys.exit(f"ended before it was killed:\n{run.output()}")
                    time.sleep(0.001)
                time.sleep(0 if while_saving else pause)
                victims = range(options.processes) if whom == "all" else [int(whom)]
                for index in victims:
                    run.kill(index)
                killed = time.monotonic()
                statuses = run.wait(HEARTBEAT + 60)
                waited = time.monotonic() - killed
            orderly = 0 not in statuses
            finish(workdir)
            same = all(map(np.array_equal, adapter(workdir), wanted))
            failed += not (orderly and same)
            verdict = "bit-equal" if same else "DIFFERS"
            when = "while saving" if while_saving else "training"
            seconds = "" if whom == "all" else f"{waited:.1f}"
            print(f"| {number} | {whom} | {when} | {step} | {seconds} | {verdict} |", flush=True)
            if not orderly:
                print(f"run {number}: exit status 0 beside a killed process: {statuses}")
    print(f"{options.runs - failed} of {options.runs} runs passed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
