"""tpu_pod.sh against a gcloud that records what it is given."""

import shlex
import shutil

import pytest

from tests.launch.conftest import POD, POD_SETTINGS, commands, states

WHERE = ["--project=our-project", "--zone=us-west4-a"]
TPUS = ["gcloud", "compute", "tpus"]
TRAIN = (
    "bash pea-jax/tpu_pod.sh on-worker start train --distributed --config configs/sdxl_zh.py "
    "--workdir gs://bucket/runs/zh --config.train.compilation_cache=gs://bucket/compilation_cache"
)
PROMPTS = ["夜空中有 一个星星", 'it\'s "quoted" $HOME `id` \\ 100%']


def create(*more):
    return [
        *[*TPUS, "queued-resources", "create", "pea", "--node-id=pea"],
        *["--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"],
        *[*more, "--quiet", *WHERE],
    ]


def ssh(command, worker="all"):
    start = [*TPUS, "tpu-vm", "ssh", "pea", f"--worker={worker}", "--quiet"]
    return [*start, f"--command={command}", *WHERE]


def on_worker(command, worker="all"):
    return ssh(f"bash pea-jax/tpu_pod.sh on-worker {command}", worker)


def scp(*words, worker="all"):
    return [*TPUS, "tpu-vm", "scp", *words, f"--worker={worker}", "--quiet", *WHERE]


def look(group, kind, field):
    chosen = [f"--filter=name~/{kind}/pea$", f"--format=value({field})"]
    return [*TPUS, group, "list", *chosen, *WHERE]


SLICE = look("queued-resources", "queuedResources", "state.state")
NODE = look("tpu-vm", "nodes", "state")
DELETE = [*TPUS, "queued-resources", "delete", "pea", "--force", "--quiet", *WHERE]


def test_create_asks_for_a_queued_resource_and_waits(pod, gcloud):
    gcloud.answer(*states("WAITING_FOR_RESOURCES", "PROVISIONING", "PROVISIONING", "ACTIVE"))
    done = pod("create")
    assert done.returncode == 0, done.stderr
    assert gcloud.calls == [create(), *[SLICE] * 4]
    assert done.stdout.splitlines() == [
        "pea: WAITING_FOR_RESOURCES",
        "pea: PROVISIONING",
        "pea: ACTIVE",
    ]


def test_create_spot_with_an_account_and_more_for_gcloud(pod, gcloud):
    words = ["create", "--spot", "--no-wait", "--service-account", "a@b.c"]
    done = pod(*words, "--create-options=--network=n --valid-until-duration=6h")
    assert done.returncode == 0, done.stderr
    scopes = "--scopes=https://www.googleapis.com/auth/cloud-platform"
    more = ["--network=n", "--valid-until-duration=6h"]
    assert gcloud.calls == [create("--spot", "--service-account=a@b.c", scopes, *more)]


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED", ""])
def test_create_ends_when_the_slice_will_not_come(pod, gcloud, state):
    gcloud.answer(*states("PROVISIONING", state))
    done = pod("create")
    assert done.returncode == 1
    assert f"pea is {state or 'NONE'} and will not become ACTIVE" in done.stderr


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [("v5litepod-4", "v2-alpha-tpuv5-lite"), ("v5p-8", "v2-alpha-tpuv5")]
    + [("v6e-16", "v2-alpha-tpuv6e"), ("v4-32", "tpu-ubuntu2204-base")],
)
def test_the_runtime_goes_by_the_accelerator(pod, gcloud, accelerator, runtime):
    assert pod("create", "--no-wait", "--accelerator-type", accelerator).returncode == 0
    assert f"--runtime-version={runtime}" in gcloud.calls[0]


def test_setup_copies_the_last_commit_and_installs_it(pod, gcloud):
    done = pod("setup")
    assert done.returncode == 0, done.stderr
    mkdir, script, archive, install = gcloud.calls
    assert mkdir == ssh("mkdir -p pea-jax")
    assert script == scp(str(POD), "pea:pea-jax/tpu_pod.sh")
    assert archive == scp(archive[5], "pea:pea-jax/checkout.tar.gz")
    assert install == on_worker("install ''")


def test_setup_installs_a_published_package(pod, gcloud):
    assert pod("setup", "--pip-spec", "pea-jax[tpu,gcs]==0.1.0").returncode == 0
    assert gcloud.calls[-1] == on_worker("install 'pea-jax[tpu,gcs]==0.1.0'")


def test_train_starts_where_nothing_runs(pod, gcloud):
    done = pod("train", "--", "--config.optim.learning_rate=1e-5", "--config.seed=1")
    assert done.returncode == 0, done.stderr
    more = " --config.optim.learning_rate=1e-5 --config.seed=1"
    assert gcloud.calls == [on_worker("idle"), ssh(TRAIN + more)]


def test_train_is_refused_where_a_worker_runs(pod, gcloud):
    gcloud.answer(("on-worker idle", 3))
    done = pod("train")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "tpu_pod.sh train: a run goes on: see tpu_pod.sh status, or end it with tpu_pod.sh stop"
    ]
    assert gcloud.calls == [on_worker("idle")]


def test_train_before_setup_says_so(pod, gcloud):
    gcloud.answer(("on-worker idle", 127))
    done = pod("train")
    assert done.returncode == 1
    assert "tpu_pod.sh setup" in done.stderr


def test_status_asks_the_workers_of_a_slice_that_is_there(pod, gcloud):
    gcloud.answer(*states("ACTIVE"))
    assert pod("status").stdout == "pea: ACTIVE\n"
    assert gcloud.calls == [SLICE, on_worker("state")]


@pytest.mark.parametrize(("text", "said"), [("SUSPENDED", "SUSPENDED"), ("", "NONE")])
def test_status_of_a_slice_that_is_gone(pod, gcloud, text, said):
    gcloud.answer(*states(text))
    done = pod("status")
    assert (done.returncode, done.stdout) == (0, f"pea: {said}\n")
    assert gcloud.calls == [SLICE]


def test_logs_of_a_worker(pod, gcloud):
    assert pod("logs").returncode == 0
    assert pod("logs", "--follow", "--worker", "2").returncode == 0
    assert gcloud.calls == [on_worker("log", 0), on_worker("log --follow", 2)]


def test_stop(pod, gcloud):
    assert pod("stop").returncode == 0
    assert gcloud.calls == [on_worker("stop")]


@pytest.mark.parametrize(
    ("seen", "node", "first"),
    [
        # Preempted; preempted and not yet cleared away; gone from under an ACTIVE request.
        (["SUSPENDED", "SUSPENDED", "PROVISIONING", "ACTIVE"], "", [DELETE, create("--spot")]),
        (["SUSPENDING", "SUSPENDING", "SUSPENDED", "ACTIVE"], "", [DELETE, create("--spot")]),
        (["ACTIVE", "ACTIVE", "ACTIVE"], "PREEMPTED", [DELETE, create("--spot")]),
        (["FAILED", "FAILED", "ACTIVE"], "", [DELETE, create("--spot")]),
        # Deleted; still in the queue; there and idle.
        (["", "", "ACTIVE"], "", [create("--spot")]),
        (["WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "ACTIVE"], "", []),
        (["ACTIVE"], "READY", [on_worker("idle")]),
    ],
)
def test_resume(pod, gcloud, seen, node, first):
    gcloud.answer(*states(*seen, node=node))
    done = pod("resume", "--spot", "--", "--config.seed=1")
    assert done.returncode == 0, done.stderr
    acts = [call for call in gcloud.calls if call not in (SLICE, NODE)]
    assert acts[: len(first)] == first
    assert [call[4] for call in acts[len(first) :]] == ["ssh", "scp", "scp", "ssh", "ssh"]
    assert acts[-1] == ssh(f"{TRAIN} --config.seed=1")


def test_resume_leaves_a_run_that_goes_on(pod, gcloud):
    gcloud.answer(*states("ACTIVE"), ("on-worker idle", 3))
    done = pod("resume")
    assert done.returncode == 1
    assert "a run goes on" in done.stderr
    assert gcloud.calls[-1] == on_worker("idle")


def test_sample_hands_prompts_on_as_they_are(pod, gcloud, tmp_path):
    words = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    images = tmp_path / "images of today"
    done = pod("sample", "--output", images, "--", *words)
    assert done.returncode == 0, done.stderr
    run, fetch = gcloud.calls
    command = next(word for word in run if word.startswith("--command=")).removeprefix("--command=")
    start = ["bash", "pea-jax/tpu_pod.sh", "on-worker", "run", "sample", "--distributed"]
    # Every host writes its own images, so that they are to be where all hosts reach.
    folder = "gs://bucket/runs/zh/samples/now"
    rest = ["--workdir", "gs://bucket/runs/zh", "--output", folder]
    assert shlex.split(command) == [*start, *rest, *words]
    assert fetch == ["gcloud", "storage", "rsync", "--recursive", folder, str(images)]
    assert images.is_dir()


def test_sample_copies_a_file_of_prompts(pod, gcloud, tmp_path):
    (tmp_path / "prompts.txt").write_text("一只猫\n", "utf-8")
    # Without SAMPLES the folder is called by the time.
    words = ["--prompts", tmp_path / "prompts.txt", "--output", tmp_path / "images"]
    done = pod("sample", *words, SAMPLES="")
    assert done.returncode == 0, done.stderr
    assert gcloud.calls[0] == scp(str(tmp_path / "prompts.txt"), "pea:pea-jax/prompts.txt")
    assert "/samples/20" in " ".join(gcloud.calls[1])
    assert "Z --prompts ../prompts.txt" in " ".join(gcloud.calls[1])


def test_export_is_the_work_of_one_worker(pod, gcloud, tmp_path):
    assert pod("export", "--output", tmp_path / "adapter").returncode == 0
    assert gcloud.calls == [
        on_worker("export --workdir gs://bucket/runs/zh --output ../output", 0),
        scp("--recurse", "pea:pea-jax/output", str(tmp_path / "adapter"), worker=0),
    ]


@pytest.mark.parametrize("command", ["sample", "export"])
def test_an_output_that_is_there_is_not_written_over(pod, gcloud, tmp_path, command):
    done = pod(command, "--output", tmp_path)
    assert done.returncode == 1
    assert "is there already" in done.stderr
    assert not gcloud.calls


@pytest.mark.parametrize("answer", ["", "n\n", "nonsense\n"])
def test_delete_asks(pod, gcloud, answer):
    done = pod("delete", answer=answer)
    assert done.returncode == 1
    assert "pea was not deleted" in done.stderr
    assert not gcloud.calls


@pytest.mark.parametrize(("words", "answer"), [(["--yes"], ""), ([], "y\n")])
def test_delete_shows_what_still_costs_and_leaves_the_bucket(pod, gcloud, words, answer):
    assert pod("delete", *words, answer=answer).returncode == 0
    lists = [[*TPUS, group, "list", *WHERE] for group in ("queued-resources", "tpu-vm")]
    assert gcloud.calls == [DELETE, *lists]


@pytest.mark.parametrize(
    "words",
    [["create"], ["setup"], ["train"], ["logs"], ["stop"], ["delete", "--yes"]]
    + [["sample", "--output", "new"], ["export", "--output", "new"]],
)
def test_a_failure_of_gcloud_is_one_line_and_its_status(pod, gcloud, words):
    gcloud.answer(("", 7))
    done = pod(*words)
    assert done.returncode == 7
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"tpu_pod.sh {words[0]}: ")


def test_a_passing_failure_does_not_end_a_wait(pod, gcloud):
    gcloud.answer(("list", 1))
    done = pod("status")
    assert done.returncode == 1
    assert len(gcloud.calls) == 3
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [["create"], ["create", "--spot"], ["setup"], ["train"], ["status"], ["logs", "--follow"]]
    + [["stop"], ["resume"], ["delete"], ["export", "--output", "o"]]
    + [["sample", "--output", "o", "--", "--prompt", PROMPTS[0], "--prompt", PROMPTS[1]]],
)
def test_a_dry_run_prints_what_would_be_run_and_runs_nothing(pod, gcloud, tmp_path, words):
    words = [tmp_path / "o" if word == "o" else word for word in words]
    dry = pod(words[0], "--dry-run", *words[1:])
    assert dry.returncode == 0, dry.stderr
    assert not gcloud.calls
    printed = [tuple(call) for call in commands(dry.stdout)]
    assert printed
    gcloud.answer(*states(*["SUSPENDED"] * 2 if words == ["resume"] else [], "ACTIVE"))
    done = pod(*words, answer="y\n")
    assert done.returncode == 0, done.stderr
    # The archive lies in a folder of its own name each time.
    called = {tuple(call) for call in gcloud.calls if "pea:pea-jax/checkout.tar.gz" not in call}
    assert called <= set(printed)


def test_a_dry_run_needs_no_gcloud(stand_ins, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "env", "dirname", "sed"):
        (tools / tool).symlink_to(shutil.which(tool))
    path = {"PATH": str(tools)}
    dry = stand_ins.run(POD, "create", "--dry-run", **POD_SETTINGS | path)
    assert dry.returncode == 0, dry.stderr
    done = stand_ins.run(POD, "create", **POD_SETTINGS | path)
    assert done.returncode == 1
    assert done.stderr.startswith("tpu_pod.sh create: no gcloud on PATH")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["status", "--name="], "missing --name (NAME)"),
        (["train", "--zone=", "--workdir="], "missing --zone (ZONE), --workdir (WORKDIR)"),
        (["create", "--accelerator-type", "h100"], "missing --runtime-version (RUNTIME_VERSION)"),
        (["sample"], "missing --output (OUTPUT)"),
        (["train", "--workdir", "/local"], "expected a --workdir gs://BUCKET/RUN"),
        (["train", "--workdir", "gs://bucket"], "expected a --workdir gs://BUCKET/RUN"),
        (["train", "--config", "configs/none.py"], "expected a --config in the checkout"),
        (["create", "--name", "Not_a_name"], "expected a --name of lower-case letters"),
        (["create", "--poll", "soon"], "expected --poll in whole seconds"),
        (["create", "--zoen", "z"], "no setting '--zoen'"),
        (["create", "--zone"], "--zone takes a value"),
        (["create", "--spot=yes"], "--spot takes no value"),
        (["status", "--", "more"], "unexpected 'more'"),
        (["launch"], "no such command"),
    ],
)
def test_a_command_line_that_cannot_be(pod, gcloud, words, message):
    done = pod(*words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"tpu_pod.sh {words[0]}: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert not gcloud.calls


def test_flags_go_before_the_environment(pod, gcloud):
    assert pod("stop", "--name", "other", "--zone=z").returncode == 0
    assert gcloud.calls[0][5] == "other"
    assert gcloud.calls[0][-1] == "--zone=z"


@pytest.mark.parametrize("value", ["0", "false", ""])
def test_spot_is_off_when_it_says_so(pod, gcloud, value):
    assert pod("create", "--no-wait", SPOT=value).returncode == 0
    assert "--spot" not in gcloud.calls[0]
