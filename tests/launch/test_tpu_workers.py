"""tpu_pod.sh on workers that are folders: only the installing is not done in earnest."""

import sys
import time

import pytest

from tests.launch.conftest import ROOT, states

PEA_JAX = """#!/usr/bin/env bash
# Trains until it is stopped or asked to finish, as the real one would.
printf '%s\\n' "$@" >"$HOME/arguments"
while [[ $1 != --workdir && $# -gt 1 ]]; do words+=("$1"); shift; done
workdir=$2
mkdir -p "$workdir/checkpoints/3"
echo '{"train": {"steps": 10}}' >"$workdir/config.json"
case ${words[0]} in
  sample) ;;
  export) mkdir ../output && echo "$JAX_PLATFORMS" >../output/platform ;;
  train)
    [[ ! -e $HOME/fail ]] || { echo 'pea-jax train: no'; exit 1; }
    trap 'mkdir -p "$workdir/checkpoints/5"; echo "stopped at step 5"; exit 0' TERM
    echo "step 3"
    until [[ -e $HOME/finish ]]; do sleep 0.05; done
    mkdir -p "$workdir/checkpoints/10"
    echo "trained 10 steps" ;;
esac
"""

# For python3 -m pip and -m uv: no package is fetched. The venv's python takes gs:// to be here.
PYTHON = f"""#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$HOME/installs"
if [[ $* == *'uv venv'* ]]; then
  mkdir -p venv/bin
  cp "$STANDIN/pea-jax" venv/bin/pea-jax
  echo '#!/usr/bin/env bash' >venv/bin/python
  echo 'exec {sys.executable} "${{@//gs:\\/\\//$HOME/gs-}}"' >>venv/bin/python
  chmod +x venv/bin/*
fi
"""


# A worker gets the last commit; the tests are about the files as they are.
GIT = f"""#!/usr/bin/env bash
for word in "$@"; do
  [[ $word != --output=* ]] || tar -czf "${{word#--output=}}" -C {ROOT} launch configs
done
"""


@pytest.fixture
def workers(gcloud):
    """Two workers, as folders."""
    homes = [gcloud.folder / "workers" / name for name in "01"]
    for home in homes:
        home.mkdir(parents=True)
    for file, text in (("pea-jax", PEA_JAX), ("bin/python3", PYTHON), ("bin/git", GIT)):
        file = gcloud.folder / file
        file.write_text(text, "utf-8")
        file.chmod(0o755)
    gcloud.answer(*states("ACTIVE"))
    yield homes
    for home in homes:
        (home / "finish").touch()


def until(said, pod):
    """Ask for the status until every worker says so."""
    for _ in range(200):
        lines = pod("status").stdout.splitlines()[1:]
        if len(lines) == 2 and all(said in line for line in lines):
            return lines
        time.sleep(0.05)
    raise AssertionError(f"expected {said!r} of both workers, got {lines}")


def test_a_run_from_setup_to_its_end(pod, workers, tmp_path):
    done = pod("setup")
    assert done.returncode == 0, done.stderr
    for home in workers:
        assert (home / "pea-jax" / "src" / "configs" / "base.py").is_file()
        installs = (home / "installs").read_text("utf-8").splitlines()
        assert installs[-1].endswith("--python venv/bin/python --editable ./src[tpu,gcs]")
    until("nothing was started", pod)

    words = ["--config.train.sample_prompts=('it''s', '一只 猫')", "--config.seed=1"]
    done = pod("train", "--", *words)
    assert done.returncode == 0, done.stderr
    until("step 3", pod)
    assert all("running" in line for line in until("running", pod))
    for home in workers:
        arguments = (home / "arguments").read_text("utf-8").splitlines()
        assert arguments[:2] == ["train", "--distributed"]
        assert arguments[-2:] == words

    # While it runs nothing else gets the TPU, and the code under it is not replaced.
    for command in (["train"], ["resume"], ["setup"], ["sample", "--output", tmp_path / "no"]):
        done = pod(*command)
        assert done.returncode != 0, command
        assert "a run goes on" in done.stderr

    assert pod("stop").returncode == 0
    until("stopped before its last step", pod)
    assert "stopped at step 5" in pod("logs", "--worker", "1").stdout

    assert pod("resume").returncode == 0
    until("running", pod)
    for home in workers:
        (home / "finish").touch()
    until("finished", pod)

    done = pod("sample", "--output", tmp_path / "images", "--", "--prompt", "一只 猫")
    assert done.returncode == 0, done.stderr
    assert (workers[1] / "arguments").read_text("utf-8").splitlines()[-1] == "一只 猫"
    done = pod("export", "--output", tmp_path / "adapter")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "adapter" / "platform").read_text("utf-8") == "cpu\n"


def test_a_run_that_fails_says_its_status(pod, workers):
    assert pod("setup").returncode == 0
    for home in workers:
        (home / "fail").touch()
    assert pod("train").returncode == 0
    until("failed with status 1", pod)
    # The lock is free again.
    for home in workers:
        (home / "fail").unlink()
    assert pod("train").returncode == 0
    until("running", pod)


def test_one_worker_that_runs_is_enough_to_refuse(pod, workers):
    assert pod("setup").returncode == 0
    (workers[0] / "fail").touch()
    assert pod("train").returncode == 0
    for _ in range(200):
        if pod("status").stdout.count("running") == 1:
            break
        time.sleep(0.05)
    done = pod("train")
    assert done.returncode == 1
    assert "a run goes on" in done.stderr
