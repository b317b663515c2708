"""gke/run.sh, and the JobSets that it hands to kubectl."""

import json

import pytest
import yaml

from tests.launch.conftest import ROOT, commands

RUN = ROOT / "launch" / "gke" / "run.sh"
SETTINGS = {
    "NAME": "pea",
    "IMAGE": "us-docker.pkg.dev/our-project/pea/pea-jax:tpu",
    "WORKDIR": "gs://bucket/runs/zh",
    "CONFIG": "configs/sdxl_zh.py",
}
TRAIN = ["train", "--distributed", "--config", "configs/sdxl_zh.py"]
TRAIN += ["--workdir", "gs://bucket/runs/zh"]
TRAIN += ["--config.train.compilation_cache=gs://bucket/compilation_cache"]
KUBECTL = ["kubectl", "--namespace=default"]


@pytest.fixture
def run(stand_ins):
    return lambda *words, **others: stand_ins.run(RUN, *words, **(SETTINGS | others))


def manifest(done):
    """The manifest of a --dry-run."""
    assert done.returncode == 0, done.stderr
    first, *lines, last = done.stdout.splitlines()
    assert first == "kubectl --namespace=default create --filename=- <<'YAML'"
    assert last == "YAML"
    return yaml.safe_load("\n".join(lines))


def parts(jobset):
    """The Job, its pods and their one container."""
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    return replicated, job, pod, container


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
@pytest.mark.parametrize("spot", [[], ["--spot"]])
def test_what_holds_for_both(run, stand_ins, kind, spot):
    jobset = manifest(run(kind, "--dry-run", *spot))
    assert not stand_ins.calls
    assert "${" not in json.dumps(jobset)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"]["name"] == "pea"
    assert jobset["spec"]["network"] == {"enableDNSHostnames": True, "subdomain": "pea"}
    replicated, job, pod, container = parts(jobset)
    # One Job a slice, all of its hosts at once, and none started again alone.
    assert replicated["replicas"] == 1
    assert job["parallelism"] == job["completions"] > 0
    assert job["completionMode"] == "Indexed"
    assert job["backoffLimit"] == 0
    assert pod["restartPolicy"] == "Never"
    # All start again together; preemptions and saves (75) don't count.
    policy = jobset["spec"]["failurePolicy"]
    assert policy["restartStrategy"] == "BlockingRecreate"
    assert policy["maxRestarts"] == 5
    assert policy["rules"][0]["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert policy["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    saved, disrupted = job["podFailurePolicy"]["rules"]
    assert saved["onExitCodes"]["values"] == [75]
    assert saved["onExitCodes"]["containerName"] == container["name"]
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    # Long enough to save, by a process that hands SIGTERM on.
    assert pod["terminationGracePeriodSeconds"] >= 120
    assert container["command"] == ["python", "launch/supervise.py", "pea-jax"]
    assert container["args"] == TRAIN
    assert container["image"] == SETTINGS["IMAGE"]
    assert pod["nodeSelector"].get("cloud.google.com/gke-spot") == ("true" if spot else None)
    assert [volume["name"] for volume in pod["volumes"]] == ["shared-memory"]


@pytest.mark.parametrize(
    ("words", "topology", "hosts", "chips"),
    [
        ([], "4x4", 4, 4),
        (["--topology", "2x4"], "2x4", 2, 4),
        (["--topology", "2x4", "--chips-per-host", "8"], "2x4", 1, 8),
        (["--topology", "1x1"], "1x1", 1, 1),
        (["--topology", "2x2x4", "--accelerator", "tpu-v5p-slice"], "2x2x4", 4, 4),
    ],
)
def test_the_hosts_of_a_slice(run, words, topology, hosts, chips):
    jobset = manifest(run("tpu", "--dry-run", *words))
    _, job, pod, container = parts(jobset)
    assert job["parallelism"] == hosts
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    exclusive = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    assert jobset["metadata"]["annotations"][exclusive] == "cloud.google.com/gke-nodepool"


def test_gpu_processes_are_told_of_one_another(run):
    jobset = manifest(run("gpu", "--dry-run", "--hosts", "3", "--chips-per-host", "4"))
    replicated, job, _, container = parts(jobset)
    assert job["parallelism"] == 3
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}
    variables = {variable["name"]: variable for variable in container["env"]}
    # JobSet names a pod JOBSET-REPLICATED_JOB-JOB-POD, in the subdomain.
    first = f"pea-{replicated['name']}-0-0.{jobset['spec']['network']['subdomain']}"
    address, port = variables["JAX_COORDINATOR_ADDRESS"]["value"].split(":")
    assert address == first
    assert {"containerPort": int(port)} in container["ports"]
    assert variables["JAX_NUM_PROCESSES"]["value"] == "3"
    source = variables["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert source == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert variables["JAX_LOCAL_DEVICE_IDS"]["value"] == "0,1,2,3"


def test_arguments_reach_the_program_as_they_are(run):
    words = ["--config.train.sample_prompts=('夜空 中', 'it''s \"so\"')", "a\\b & ${NAME}: #x"]
    jobset = manifest(run("tpu", "--dry-run", "--", *words, "$(HOME)"))
    # Kubernetes reads $$( as $(.
    assert parts(jobset)[3]["args"] == [*TRAIN, *words, "$$(HOME)"]


def test_train_is_created_not_changed(run, stand_ins):
    assert run("tpu").returncode == 0
    assert stand_ins.calls == [[*KUBECTL, "create", "--filename=-"]]


def test_status_logs_and_stop(run, stand_ins):
    chosen = "--selector=jobset.sigs.k8s.io/jobset-name=pea"
    for words in (["status"], ["logs", "--follow"], ["stop"]):
        dry = run(*words, "--dry-run")
        before = len(stand_ins.calls)
        assert run(*words).returncode == 0
        assert stand_ins.calls[before:] == commands(dry.stdout)
    assert stand_ins.calls == [
        [*KUBECTL, "get", "jobset", "pea"],
        [*KUBECTL, "get", "pods", "--output=wide", chosen],
        [*KUBECTL, "logs", "--tail=100", "--follow"]
        + [f"{chosen},batch.kubernetes.io/job-completion-index=0"],
        [*KUBECTL, "delete", "jobset", "pea", "--cascade=foreground"],
    ]


def test_a_failure_of_kubectl_is_one_line_and_its_status(run, stand_ins):
    stand_ins.answer(("create", 4))
    done = run("gpu")
    assert done.returncode == 4
    assert done.stderr.startswith("gke/run.sh gpu: failed with status 4: kubectl")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tpu", "--name=", "--image="], "missing --name (NAME), --image (IMAGE)"),
        (["tpu", "--topology", "16"], "expected a --topology as 4x4, got '16'"),
        (["tpu", "--hosts", "3"], "a slice of 4x4 has 16 chips, not 3 hosts of 4"),
        (["gpu", "--hosts", "none"], "expected a whole number as HOSTS, got 'none'"),
        (["tpu", "--workdir", "runs/x"], "expected a --workdir gs://BUCKET/RUN"),
        (["tpu", "--config", "none.py"], "expected a --config in the checkout"),
        (["gpu", "--name", "A b"], "expected a --name of lower-case letters"),
        (["gpu", "--", "two\nlines"], "expected arguments of one line each"),
        (["gpu", "--gpus", "8"], "no setting '--gpus'"),
        (["start"], "no such command"),
    ],
)
def test_a_command_line_that_cannot_be(run, stand_ins, words, message):
    done = run(*words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"gke/run.sh {words[0]}: {message}")
    assert not stand_ins.calls
