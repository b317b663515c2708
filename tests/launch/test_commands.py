"""Every command that launch/ holds or tells: those of ours run, those of pea-jax parse."""

import os
import re
import shlex

import pytest
import yaml

from pea_jax.cli import config
from pea_jax.cli.commands import COMMANDS, parse
from tests.launch.conftest import POD, POD_SETTINGS, ROOT, commands

LAUNCH = ROOT / "launch"
README = (LAUNCH / "README.md").read_text("utf-8")
OURS = ("launch/tpu_pod.sh", "launch/gke/run.sh", "launch/slurm_gpu.sbatch")


def documented():
    """The commands of the README's blocks, as lines, continued ones joined."""
    blocks = re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", README, re.MULTILINE)
    text = "".join(blocks).replace("\\\n", "")
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def environment():
    """What the README's `export`s set, in order; an output of a command stays as it is."""
    settings = {}
    for line in documented():
        if line.startswith("export "):
            name, _, text = line.removeprefix("export ").partition("=")
            settings.setdefault(name, filled(text, settings))
    return settings


def filled(text, settings):
    return re.sub(r"\$(\w+)", lambda match: settings.get(match[1], match[0]), text)


def check(words):
    """What `pea-jax` would say of a command line before it does anything.

    Raises:
        ValueError: no such command, flag, file or field of the config.
    """
    arguments, rest = parse(words)
    required = COMMANDS[arguments.command].required
    missing = [name for name in required if not getattr(arguments, name)]
    assert not missing, missing
    config.override(config.load(arguments.config or "base"), rest)


def on_worker(printed):
    """The words of `pea-jax` in the commands that tpu_pod.sh has workers run."""
    for call in commands(printed):
        for word in call:
            match = re.match(r"--command=bash pea-jax/tpu_pod.sh on-worker (\w+) ?(.*)", word)
            if match and match[1] in ("start", "run"):
                yield shlex.split(match[2])
            if match and match[1] == "export":
                yield ["export", *shlex.split(match[2])]


@pytest.mark.parametrize(
    ("words", "verb"),
    [(["train"], "train"), (["resume"], "train"), (["export", "--output", "o"], "export")]
    + [(["sample", "--output", "o", "--prompts", "README.md"], "sample")],
)
def test_what_workers_of_a_pod_are_given_parses(stand_ins, words, verb):
    dry = stand_ins.run(POD, words[0], "--dry-run", *words[1:], **POD_SETTINGS)
    (given,) = on_worker(dry.stdout)
    assert given[0] == verb
    assert ("--distributed" in given) == (verb != "export")
    check(given)


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_what_pods_of_gke_are_given_parses(stand_ins, kind):
    settings = {"NAME": "pea", "IMAGE": "i", "WORKDIR": "gs://bucket/run"}
    settings["CONFIG"] = "configs/tiny_zh.py"
    dry = stand_ins.run(LAUNCH / "gke" / "run.sh", kind, "--dry-run", **settings)
    (line,) = (line for line in dry.stdout.splitlines() if line.strip().startswith("args:"))
    check(yaml.safe_load(line.strip())["args"])


def test_what_tasks_of_slurm_are_given_parses(stand_ins):
    words = ["--config", "configs/tiny_zh.py", "--workdir", "/shared/run"]
    dry = stand_ins.run("bash", LAUNCH / "slurm_gpu.sbatch", "--dry-run", *words)
    given = shlex.split(dry.stdout.split(".venv/bin/pea-jax ")[1].splitlines()[0])
    assert given[:2] == ["train", "--distributed"]
    check(given)


def sky(field):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text("utf-8"))
    return task[field]


@pytest.mark.parametrize("gpu", [False, True])
def test_what_skypilot_runs_parses(stand_ins, tmp_path, gpu):
    """Its `run` in earnest, on a machine whose programs are stand-ins."""
    for name in (".venv/bin/python", ".venv/bin/pea-jax"):
        program = tmp_path / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', "utf-8")
        program.chmod(0o755)
    if gpu:
        (stand_ins.bin / "nvidia-smi").symlink_to("/bin/true")
    settings = {name: value or "" for name, value in sky("envs").items()}
    settings["WORKDIR"] = "gs://bucket/runs/zh"
    settings["ARGUMENTS"] = "--config.seed=1 --config.mesh.fsdp=2"
    done = stand_ins.run("bash", "-c", f"cd {tmp_path}\n{sky('run')}", **settings)
    assert done.returncode == 0, done.stderr
    supervise, program, *given = done.stdout.splitlines()
    assert (supervise, program) == ("launch/supervise.py", ".venv/bin/pea-jax")
    # The hosts of a slice join; a GPU node is alone.
    assert ("--distributed" in given) != gpu
    assert "--config.train.compilation_cache=gs://bucket/compilation_cache" in given
    check(given)


def test_skypilot_has_slices_and_gpus_and_goes_on():
    resources = sky("resources")
    kinds = [candidate["accelerators"] for candidate in resources["any_of"]]
    assert any(kind.startswith("tpu-") for kind in kinds)
    assert any(kind.startswith("H100") for kind in kinds)
    assert resources["use_spot"]
    assert resources["job_recovery"]["recover_on_exit_codes"] == [75]
    # What must be given has no default; mounts hold data, never the run.
    assert [name for name, value in sky("envs").items() if value is None] == ["WORKDIR", "DATA"]
    assert sky("file_mounts") == {"/data": {"source": "${DATA}", "mode": "MOUNT"}}


@pytest.mark.parametrize("field", ["setup", "run"])
def test_skypilot_scripts_are_shell(stand_ins, field):
    assert stand_ins.run("bash", "-n", "-c", sky(field)).returncode == 0


def test_the_readme_tells_every_command_of_ours():
    lines = [line for line in documented() if any(name in line for name in OURS)]
    commands_of = {
        name: {line.split(f"{name} ")[1].split()[0] for line in lines if name in line}
        for name in OURS[:2]
    }
    for name, known in commands_of.items():
        usage = (ROOT / name).read_text("utf-8").split("<<'TEXT'\n")[1].split("\n\n")[1]
        assert known == set(re.findall(r"^  (\w+)", usage, re.MULTILINE))


@pytest.mark.parametrize(
    "line", [line for line in documented() if any(name in line for name in OURS)]
)
def test_commands_of_ours_in_the_readme_run(stand_ins, line):
    settings = environment()
    words = shlex.split(filled(line, settings), comments=True)
    at = next(i for i, word in enumerate(words) if word in OURS)
    # What comes before is what runs it: bash, or sbatch with arguments of its own.
    start = ["bash", words[at]] if at else [words[at]]
    rest = [word for word in words[at + 1 :] if word != "--dry-run"]
    dry = ["--dry-run", *rest] if "slurm" in words[at] else [rest[0], "--dry-run", *rest[1:]]
    done = stand_ins.run(*start, *dry, **settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not stand_ins.calls
    for given in on_worker(done.stdout) if "tpu_pod" in words[at] else ():
        check(given)


@pytest.mark.parametrize("line", [line for line in documented() if line.startswith("pea-jax ")])
def test_commands_of_pea_jax_in_the_readme_parse(line):
    check(shlex.split(filled(line, environment()))[1:])


def test_the_readme_names_what_is_there():
    for target in re.findall(r"\]\(([^)#]+)(?:#[\w-]*)?\)", README):
        if not target.startswith("http"):
            assert (LAUNCH / target).exists(), target
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([\w-]+)\)", README)) <= anchors


def test_the_image_has_what_pods_run():
    file = (LAUNCH / "Dockerfile").read_text("utf-8")
    ignored = (LAUNCH / "Dockerfile.dockerignore").read_text("utf-8").split()
    assert 'ENTRYPOINT ["pea-jax"]' in file
    assert not {"launch", "configs", "pea_jax", "README.md"} & set(ignored)
    extras = re.search(r"EXTRAS = (\{.*?^\})", (ROOT / "setup.py").read_text(), re.DOTALL | re.M)[1]
    assert all(f'"{name}": [' in extras for name in ("tpu", "cuda"))


@pytest.mark.parametrize("file", ["tpu_pod.sh", "gke/run.sh", "slurm_gpu.sbatch"])
def test_scripts_are_programs_and_fail_on_errors(stand_ins, file):
    script = LAUNCH / file
    assert os.access(script, os.X_OK)
    text = script.read_text("utf-8")
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail\n" in text
    assert stand_ins.run("bash", "-n", script).returncode == 0
