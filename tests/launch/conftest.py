import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch import standin

ROOT = Path(__file__).parents[2]

#: What would reach a script of ours from the machine that runs the tests.
SETTINGS = {
    *("NAME", "PROJECT", "ZONE", "ACCELERATOR_TYPE", "RUNTIME_VERSION", "SPOT", "SERVICE_ACCOUNT"),
    *("CREATE_OPTIONS", "WORKDIR", "CONFIG", "CACHE", "PIP_SPEC", "PROMPTS", "OUTPUT", "WORKER"),
    *("POLL", "SAMPLES", "DRY_RUN", "IMAGE", "ACCELERATOR", "TOPOLOGY", "HOSTS", "CHIPS_PER_HOST"),
    *("MAX_RESTARTS", "POD_ACCOUNT", "NAMESPACE", "VENV", "BUCKET"),
}

#: None of these is ever the real one, not even where a script calls what it should not.
PROGRAMS = ("gcloud", "kubectl", "srun", "scontrol", "sky", "docker")

POD = ROOT / "launch" / "tpu_pod.sh"
POD_SETTINGS = {
    "NAME": "pea",
    "PROJECT": "our-project",
    "ZONE": "us-west4-a",
    "ACCELERATOR_TYPE": "v5litepod-16",
    "WORKDIR": "gs://bucket/runs/zh",
    "CONFIG": "configs/sdxl_zh.py",
    "POLL": "0",
    "SAMPLES": "now",
}


class StandIns:
    """Programs that record how they were called, first on a PATH that has the usual tools."""

    def __init__(self, folder):
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        self.answer()
        for program in PROGRAMS:
            file = self.bin / program
            code = f"#!{sys.executable}\n{Path(standin.__file__).read_text('utf-8')}"
            file.write_text(code, "utf-8")
            file.chmod(0o755)

    def answer(self, *answers):
        """What calls that match are answered: (pattern, status, text...)."""
        listed = [[pattern, status, texts] for pattern, status, *texts in answers]
        (self.folder / "answers.json").write_text(json.dumps(listed), "utf-8")

    @property
    def calls(self):
        log = self.folder / "log"
        lines = log.read_text("utf-8").splitlines() if log.exists() else []
        return [json.loads(line) for line in lines]

    def run(self, *command, answer=None, **environment):
        """Run a script of ours with nothing but these programs to reach the world by."""
        kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        return subprocess.run(
            [str(word) for word in command],
            env=kept
            | {"PATH": f"{self.bin}:/usr/bin:/bin", "STANDIN": str(self.folder)}
            | environment,
            cwd=ROOT,
            input=answer or "",
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture
def stand_ins(tmp_path):
    return StandIns(tmp_path / "standins")


@pytest.fixture
def gcloud(stand_ins):
    """The stand-ins, where gcloud is the one that matters."""
    return stand_ins


@pytest.fixture
def pod(gcloud):
    """Run the script with the settings above."""
    return lambda *words, **others: gcloud.run(POD, *words, **(POD_SETTINGS | others))


def states(*texts, node="READY"):
    """What the lists of slices and nodes answer, one text a look."""
    return ("queued-resources list .*--filter", 0, *texts), ("tpu-vm list .*--filter", 0, node)


def commands(printed):
    """The commands that a --dry-run printed, as words; what it says in comments left out."""
    return [shlex.split(line) for line in printed.splitlines() if not line.startswith("#")]
