"""Real processes, joined as hosts are, against one process: the same run, however it is spread.

benchmarks/several_hosts.py runs all the meshes on tinyworld itself, benchmarks/kill_and_resume.py
kills at random.
"""

import json
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import kill_and_resume, several
from pea_jax.data import paths
from pea_jax.data.read.source import Source
from pea_jax.runtime import checkpoint, checkpoint_files, metrics
from tests import tiny
from tests.data.photographs import crop, dumped, encoded

#: Seconds in which any of these commands ends, on a busy machine.
LONG = 400

STEPS = 6
PROMPTS = ["红", "蓝", "绿", "黄", "黑"]


@pytest.fixture(scope="module")
def begin(tmp_path_factory):
    """begin(name, processes, devices, **changes) -> workdir and the processes that train there."""
    models = tiny.write_models(tmp_path_factory.mktemp("models"))
    data_dir = tiny.write_data(tmp_path_factory.mktemp("data"))
    cache = tmp_path_factory.mktemp("cache")
    workdirs = tmp_path_factory.mktemp("runs")

    def begin(
        name: str, processes: int, devices: int = 1, **changes: object
    ) -> tuple[Path, several.Several]:
        workdir = workdirs / name
        made = tiny.config(
            models,
            data_dir,
            **{
                "data__batch_size": 8,
                "data__native_batch_size": 4,
                "train__steps": STEPS,
                "train__compilation_cache": str(cache),
                **changes,
            },
        )
        checkpoint.check_config(workdir, made.to_dict())
        checkpoint.write_config(workdir, made.to_dict())
        return workdir, start(["train", "--workdir", str(workdir)], processes, devices)

    return begin


def start(arguments: list[str], processes: int, devices: int = 1) -> several.Several:
    # Compiled without optimisation: what is tested is not the speed of a step.
    quick = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0"
    }
    return several.start(arguments, processes=processes, devices=devices, environment=quick)


def finish(run: several.Several, status: int = 0) -> str:
    """What process 0 printed, once all have ended with this status."""
    with run:
        statuses = run.wait(LONG)
        output = "\n".join(run.output(index) for index in range(len(statuses)))
        assert statuses == [status] * len(statuses), output
        return run.output(0)


def wait_for(run: several.Several, text: str) -> None:
    end = time.monotonic() + LONG
    while text not in run.output(0):
        ended = [process.poll() for process in run.processes]
        assert ended == [None] * len(ended), run.output(0)
        assert time.monotonic() < end, run.output(0)
        time.sleep(0.02)


@pytest.fixture(scope="module")
def alone(begin):
    """The run of one process on one device, to its end."""
    workdir, run = begin("alone", 1)
    finish(run)
    return workdir


def assert_same_losses(workdir: Path, wanted: Path) -> None:
    """Every term of every step, to the rounding of float32."""
    lines, others = metrics.read_metrics(workdir), metrics.read_metrics(wanted)
    assert [line["step"] for line in lines] == [line["step"] for line in others]
    for line, other in zip(lines, others, strict=True):
        for name, value in other.items():
            if name == "grad_norm" or name.startswith(("loss", "feature")):
                message = f"{name} of step {line['step']}"
                np.testing.assert_allclose(line[name], value, rtol=2e-4, err_msg=message)


def test_two_hosts_of_two_devices_train_and_sample_as_one_device_does(begin, alone, tmp_path):
    """Rows that are lost, doubled or moved to another host, a mean over a host's own rows, or
    weights that are gathered wrongly, would change the losses; noise by the device the images."""
    workdir, run = begin("hosts", 2, 2, mesh__fsdp=2)
    output = finish(run)
    assert f"trained {STEPS} steps" in output
    assert_same_losses(workdir, alone)

    arguments = ["sample", "--workdir", str(alone), "--config.sample.batch_size=4"]
    arguments += [f"--prompt={prompt}" for prompt in PROMPTS]
    finish(start([*arguments, "--output", str(tmp_path / "one")], 1))
    output = finish(
        start([*arguments, "--output", str(tmp_path / "two"), "--config.mesh.fsdp=2"], 2, 2)
    )
    assert "5 images" in output
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert sorted(file.name for file in (tmp_path / "two").iterdir()) == files
    for name in [f"{number:05d}.png" for number in range(len(PROMPTS))]:
        pair = [np.asarray(Image.open(tmp_path / run / name)).astype(int) for run in ("one", "two")]
        assert np.abs(pair[0] - pair[1]).max() <= 1, name
    lines = [
        [json.loads(line) for line in (tmp_path / run / "manifest.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    ]
    assert lines[0] == lines[1]


def test_hosts_share_the_parts_of_a_set_and_one_tells_of_it(tmp_path, rng):
    lines = []
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(crop(rng)))
        lines.append({"file": f"{number}.jpg", "text": f"картина {number}", "en": "x"})
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(map(dumped, lines)))
    fields = {
        "data.dataset": "small",
        "data.data_dir": tmp_path / "data",
        "prepare.origin": "table",
        "prepare.image": "file",
        "prepare.rows_per_shard": 2,
        "prepare.mapping.caption": "text",
        "prepare.mapping.caption_en": "en",
        "prepare.mapping.language": "ru",
        "prepare.where.train": tmp_path / "rows.jsonl",
    }
    arguments = ["prepare", "--config", "configs/base.py"]
    arguments += [f"--config.{name}={value}" for name, value in fields.items()]
    run = start([*arguments, "--distributed"], 2)
    output = finish(run)
    assert "ru: 6 parallel rows, 0 native rows" in output
    assert "3/3 shards, 6 kept" in output
    assert "1/1 shards, 2 kept" in run.output(1)
    assert "parallel rows" not in run.output(1)
    rows = Source(paths.folder_of(tmp_path / "data", "small"), "train")
    assert [rows[number].key for number in range(6)] == [f"rows/{number}" for number in range(6)]
    beam = "--beam_pipeline_options=runner=DirectRunner"
    # Whichever is first to say so ends the other, too.
    with start([*arguments, "--distributed", beam], 2) as run:
        assert all(run.wait(LONG))
        output = run.output(0) + run.output(1)
    assert "a Beam pipeline is begun by one process" in output


def test_hosts_share_the_latents_and_train_from_them_as_from_pixels(begin, alone):
    """Parts that two hosts make, or none, and noise that is drawn otherwise, would show."""
    config = json.loads((alone / "config.json").read_text())
    arguments = ["--config", "configs/tiny_zh.py", "--config.data.max_bad_images=0"]
    for group in ("model", "data"):
        for name, value in config[group].items():
            value = ",".join(map(str, value)) if isinstance(value, list) else value
            if value != "":
                arguments.append(f"--config.{group}.{name}={value}")
    output = finish(start(["prepare", "--latents", *arguments], 2))
    assert re.search(r"their latents are in .*few_latents_\w+/1.0.0: 48 rows", output)
    for name, processes, devices in [("latents", 1, 1), ("latents-hosts", 2, 2)]:
        workdir, run = begin(name, processes, devices, data__latents=True)
        finish(run)
        assert_same_losses(workdir, alone)


def test_a_notice_to_one_host_stops_all_at_one_step_and_fewer_go_on(begin, alone):
    """Four hosts, then two, then one: the losses are those of one host all along, so every step
    took the rows that it takes there."""
    workdir, run = begin("fewer", 4)
    with run:
        wait_for(run, "step 1/")
        run.kill(2, signal.SIGTERM)
        assert run.wait(LONG) == [0, 0, 0, 0], run.output(0)
        assert "which is saved; go on with: pea-jax train --workdir" in run.output(0)
    stopped = max(checkpoint_files.steps(workdir))
    assert 1 <= stopped < STEPS

    _, run = begin("fewer", 2)
    with run:
        wait_for(run, f"step {stopped + 1}/")
        run.kill(0, signal.SIGINT)
        assert run.wait(LONG) == [0, 0], run.output(0)
    assert f"going on from step {stopped}" in run.output(0)

    _, run = begin("fewer", 1)
    finish(run)
    assert_same_losses(workdir, alone)


def test_killed_hosts_go_on_bit_for_bit(begin):
    """The short form of benchmarks/kill_and_resume.py: one of two, then both while they save."""
    straight, run = begin("straight", 2)
    finish(run)
    workdir, run = begin("broken", 2)
    with run:
        wait_for(run, "step 1/")
        run.kill(1)
        assert 0 not in run.wait(LONG)
    _, run = begin("broken", 2)
    with run:
        end = time.monotonic() + LONG
        while not kill_and_resume.saving(workdir):
            assert time.monotonic() < end, run.output(0)
            assert run.processes[0].poll() is None, run.output(0)
            time.sleep(0.001)
        run.kill(0)
        run.kill(1)
        assert run.wait(LONG) == [-signal.SIGKILL, -signal.SIGKILL]
    _, run = begin("broken", 2)
    finish(run)
    wanted, got = kill_and_resume.adapter(straight), kill_and_resume.adapter(workdir)
    assert len(wanted) == len(got) > 0
    for one, other in zip(wanted, got, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("lost", [0, 1])
def test_when_a_host_is_killed_the_others_end_too(begin, lost):
    workdir, run = begin(f"lost-{lost}", 2, train__steps=100_000, mesh__heartbeat_timeout=20)
    with run:
        wait_for(run, "step 5/")
        run.kill(lost)
        statuses = run.wait(20 + 40)
    assert statuses[lost] == -signal.SIGKILL
    assert statuses[1 - lost] not in (0, None)
    assert max(checkpoint_files.steps(workdir)) >= 2


def test_rows_go_to_their_hosts_devices_where_a_mesh_takes_turns_between_hosts():
    run = several.start([], processes=2, devices=2, module="tests.interleaved")
    finish(run)


def test_a_host_that_waits_for_others_in_vain_ends_with_one_line(begin):
    workdir, run = begin("waiting", 2, mesh__join_timeout=5)
    run.kill(1)
    with run:
        assert run.wait(LONG) == [1, -signal.SIGKILL]
    assert run.output(0).splitlines()[-1].endswith("not all processes of the run came within 5 s")
    assert not (workdir / "checkpoints").exists()


def test_a_host_that_fails_before_training_does_not_leave_the_others_waiting(begin):
    """A config that only one host can refuse: the other ends by its heartbeats."""
    _, run = begin("refused", 2, mesh__heartbeat_timeout=10, train__accumulation_steps=3)
    with run:
        assert 0 not in run.wait(LONG)
    assert "use multiples of 6" in run.output(0) + run.output(1)
