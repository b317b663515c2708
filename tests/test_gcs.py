"""Runs whose workdir is in a bucket, against an emulator of Google Cloud Storage."""

import contextlib
import json
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

emulator = pytest.importorskip("gcp_storage_emulator.server", reason="no gcp-storage-emulator")
gcsfs = pytest.importorskip("gcsfs")

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

from pea_jax.assembly import model_factory
from pea_jax.cli import config as configs
from pea_jax.cli import main
from pea_jax.data import paths
from pea_jax.data.read.source import DatasetError, Source, locate
from pea_jax.data.write import builder, executors
from pea_jax.runtime import checkpoint, checkpoint_files, storage
from pea_jax.runtime.metrics import MetricWriter, read_metrics
from pea_jax.tasks.export import export
from pea_jax.tasks.prepare import prepare
from pea_jax.tasks.sample import sample
from pea_jax.tasks.train import train
from tests import tiny
from tests.data import shards
from tests.data.photographs import crop, dumped, encoded, write_tar
from tests.runtime.test_checkpoint import ADAPTER, blank, make_state, numbers, save


class Cloud:
    """An emulator that can be stopped and come back, with what it holds."""

    def __init__(self, port: int):
        self.port = port
        self._server = emulator.create_server("localhost", port, True, "bucket")
        self.start()

    def start(self) -> None:
        storage_of_it = self._server._storage
        self._server._api = emulator.APIThread("localhost", self.port, storage_of_it, daemon=True)
        self._server.start()
        # A client that hangs up is no news.
        self._server._api._httpd.handle_error = lambda *_: None

    def stop(self) -> None:
        self._server.stop()


def _download(request, response, storage, *arguments, real=objects.download) -> None:
    """With the generation, as the real storage: TensorStore names it when it writes again."""
    real(request, response, storage, *arguments)
    with contextlib.suppress(NotFound):
        found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
        response["x-goog-generation"] = found["generation"]


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        url = f"http://localhost:{port}"
        patch.setenv("STORAGE_EMULATOR_HOST", url)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
        patch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", url)  # of ArrayRecord
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        patch.setattr(objects, "download", _download)
        cloud = Cloud(port)
        yield cloud
        cloud.stop()


@pytest.fixture
def impatient(monkeypatch) -> None:
    """Neither client waits for a storage that is gone as long as it does in earnest."""
    from orbax.checkpoint._src.serialization import tensorstore_utils

    retries = {"max_retries": 2, "initial_delay": "10ms", "max_delay": "20ms"}
    for name in ("_BASE_TS_CONTEXT", "_DEFAULT_OCDBT_TS_CONTEXT"):
        context = {**getattr(tensorstore_utils, name), "gcs_request_retries": retries}
        monkeypatch.setattr(tensorstore_utils, name, context)

    real = gcsfs.retry.asyncio.sleep

    async def sleep(seconds: float) -> None:
        await real(min(seconds, 0.01))

    monkeypatch.setattr(gcsfs.retry, "asyncio", type("asyncio", (), {"sleep": staticmethod(sleep)}))


@pytest.fixture
def bucket(cloud, request) -> storage.AnyPath:
    """A folder of its own in the bucket."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    return storage.as_path(f"gs://bucket/{name}")


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory) -> Iterator[None]:
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("cache")))
    jax.config.update("jax_enable_compilation_cache", True)  # off after a test of the TPU compiler
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return tiny.write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return tiny.write_data(tmp_path_factory.mktemp("data"))


def contents(folder: storage.AnyPath) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in storage.files(folder)}


def test_a_run_in_a_bucket_is_the_run_on_a_disk(bucket, models, data_dir, tmp_path, capsys):
    def config(**changes):
        return tiny.config(models, data_dir, train__sample_prompts=("一",), **changes)

    for place in (tmp_path, bucket):
        workdir = place / "run"
        train(config(train__steps=4, train__sample_every=2), workdir)
        train(config(train__steps=6, train__keep=1), workdir)  # goes on, and deletes old ones
        assert checkpoint_files.steps(workdir) == [6]
        sample(config(), workdir, prompts=["一", "二"], output=place / "images")
        export(config(), workdir)
    for part in ("images", "run/export"):
        local, there = contents(tmp_path / part), contents(bucket / part)
        for files in (local, there):  # the one thing that names the workdir
            text = files.pop("manifest.jsonl", b"").decode()
            assert [json.loads(line)["prompt"] for line in text.splitlines()] in (["一", "二"], [])
        assert local.keys() == there.keys()
        assert [name for name in local if local[name] != there[name]] == []
    assert tiny.lines(tmp_path / "run") == tiny.lines(bucket / "run")
    for again in (
        lambda: export(config(), bucket / "run"),
        lambda: sample(config(), bucket / "run", prompts=["一"], output=bucket / "images"),
    ):
        with pytest.raises(ValueError, match="is there already"):
            again()
    with pytest.raises(ValueError, match=r"another config.*seed"):
        train(config(seed=9), bucket / "run")
    assert any("tfevents" in name for name in contents(bucket / "run" / "tensorboard"))


def test_what_was_not_finished_in_a_bucket_is_no_checkpoint(bucket):
    save(bucket, [2, 5])
    (bucket / "checkpoints" / "00000005" / "commit_success.txt").unlink()
    assert model_factory.load_trained_adapter(bucket)[1] == 2
    with checkpoint.Checkpointer(bucket) as checkpoints:
        assert checkpoints.steps == (2,)
        assert checkpoints.save(5, make_state(5), numbers(), adapter=ADAPTER, seed=7)
    assert model_factory.load_trained_adapter(bucket)[1] == 5


def test_a_damaged_checkpoint_in_a_bucket_is_passed_over_and_kept(bucket):
    save(bucket, [2, 5])
    file = bucket / "checkpoints" / "00000005" / "optimizer" / "manifest.ocdbt"
    file.write_bytes(file.read_bytes()[:20])
    with checkpoint.Checkpointer(bucket) as checkpoints:
        with pytest.warns(
            checkpoint_files.DamagedCheckpointWarning, match="gs://.*00000005 is damaged"
        ):
            state = checkpoints.restore(blank(make_state(1)), numbers(), seed=7)
        assert checkpoints.latest_step == 2
        assert checkpoints.save(5, make_state(5), numbers(), adapter=ADAPTER, seed=7)
    jax.tree.map(np.testing.assert_array_equal, state, make_state(2))
    assert (bucket / "damaged" / "00000005" / "optimizer" / "manifest.ocdbt").exists()
    assert model_factory.load_trained_adapter(bucket)[1] == 5


def test_metrics_in_a_bucket_are_there_when_flushed(bucket):
    with MetricWriter(bucket) as writer:
        writer.scalars(1, {"loss": 1})
        writer.flush()
        assert [line["step"] for line in read_metrics(bucket)] == [1]
        writer.scalars(2, {"loss": 2})
    with MetricWriter(bucket, resumed=1):
        assert [line["step"] for line in read_metrics(bucket)] == [1]


def test_a_bucket_that_goes_away_ends_the_run_and_it_goes_on_when_it_is_back(
    cloud, bucket, models, data_dir, monkeypatch, capsys, impatient, tmp_path
):
    made = tiny.config(models, data_dir, train__steps=6)
    monkeypatch.setattr(main, "_config", lambda file, workdir: made)
    command = ["train", "--config", "x.py", "--workdir", str(bucket)]
    real, times = checkpoint.Checkpointer.save, []

    def save(self, step, *arguments, **keywords):
        times.append(step)
        if step == 4:
            self.wait()
            cloud.stop()
        return real(self, step, *arguments, **keywords)

    monkeypatch.setattr(checkpoint.Checkpointer, "save", save)
    assert main.main(command) == 1
    error = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in error if line.startswith("pea-jax train: ")]
    assert len(lines) == 1, error
    assert "the checkpoint of step 2 or 4 could not be written" in lines[0], lines
    assert "Traceback" not in "".join(error)
    # Nor can it begin while the bucket is away: no new run in place of the one that is there.
    assert main.main(command) == 1
    assert "pea-jax train: the bucket cannot be reached" in capsys.readouterr().err

    cloud.start()
    assert checkpoint_files.steps(bucket) == [2]
    monkeypatch.setattr(checkpoint.Checkpointer, "save", real)
    assert main.main(command) == 0
    assert "going on from step 2" in capsys.readouterr().err
    train(tiny.config(models, data_dir, train__steps=6), tmp_path)
    assert checkpoint_files.steps(bucket)[-1] == 6
    mine, theirs = (
        model_factory.load_trained_adapter(place)[0].layernorm.scale[...]
        for place in (tmp_path, bucket)
    )
    np.testing.assert_array_equal(mine, theirs)
    assert tiny.lines(bucket) == tiny.lines(tmp_path)


def test_a_save_that_fails_in_the_background_is_reported_at_the_next_wait(cloud, bucket, impatient):
    save(bucket, [2])
    with checkpoint.Checkpointer(bucket) as checkpoints:
        checkpoints.save(5, make_state(5), numbers(), adapter=ADAPTER, seed=7)
        cloud.stop()
        try:
            with pytest.raises(checkpoint.SaveError, match="step 5 could not be written") as error:
                checkpoints.wait()
        finally:
            cloud.start()
        assert "\n" not in str(error.value)
    assert checkpoint_files.steps(bucket) == [2]


def test_a_bucket_that_is_not_there_is_reported(cloud, capsys):
    assert main.main(["train", "--workdir", "gs://none/run"]) == 1
    assert "gs://none: no such bucket" in capsys.readouterr().err
    assert main.main(["train", "--workdir", "s3://bucket/run"]) == 1
    assert "expected a local path or gs://BUCKET" in capsys.readouterr().err


def test_a_data_set_is_built_into_a_bucket_and_read_there(bucket, data_dir):
    tiny.write_data(bucket / "data")
    tiny.write_data(bucket / "data")  # is there
    local = Source(locate(data_dir, "few"), "train")
    there = Source(locate(str(bucket / "data"), "few"), "train")
    assert [there[i] for i in range(len(there))] == [local[i] for i in range(len(local))]
    np.testing.assert_array_equal(there.index, local.index)
    assert isinstance(there.index, np.memmap), "as large as it is, it is not in memory"
    again = pickle.loads(pickle.dumps(there))
    assert again[3] == local[3]
    next(there.folder.glob("*train*")).unlink()
    with pytest.raises(DatasetError, match=r"is damaged: .* is missing"):
        Source(there.folder, "train")


def test_a_data_set_is_made_of_tars_and_tables_in_a_bucket(bucket, tmp_path, rng):
    pictures = [encoded(crop(rng)) for _ in range(4)]
    text = dumped({"caption": "一只猫", "caption_en": "a cat"})
    for number, picture in enumerate(pictures[:2]):
        tar = write_tar(tmp_path / "x.tar", [("0.jpg", picture), ("0.json", text)])
        storage.upload(tar.parent, bucket / "tars" / f"{number}")
    for number, picture in enumerate(pictures[2:]):
        (bucket / "table" / f"{number}.jpg").write_bytes(picture)
    (bucket / "table" / "t.csv").write_bytes(
        (
            "image,caption,caption_en\n0.jpg,一只猫,a cat\n1.jpg,一只猫,a cat\n"
            "../table/0.jpg,一只猫,a cat\n/dev/zero,一只猫,a cat\n"
        ).encode()
    )

    def made(name: str, origin: str, where: str) -> list[tuple[str, bytes]]:
        config = configs.load(Path(__file__).parents[1] / "configs" / "base.py")
        fields = {
            "data.dataset": name,
            "data.data_dir": str(bucket / "data"),
            "prepare.origin": origin,
            "prepare.where.train": (f"{bucket}/{where}",),
            "prepare.mapping.caption_en": ("caption_en",),
            "prepare.rows_per_shard": 1,
        }
        config.update_from_flattened_dict(fields)
        prepare(config)
        source = Source(locate(bucket / "data", name), "train")
        return [(source[number].key, source[number].image) for number in range(len(source))]

    assert made("tars", "tars", "tars/{0..1}/*.tar") == [
        ("0/x/0", pictures[0]),
        ("1/x/0", pictures[1]),
    ]
    assert made("table", "table", "table") == [("t/0", pictures[2]), ("t/1", pictures[3])]
    with pytest.raises(ValueError, match=r"no file .*tars/2\.tar"):
        made("none", "tars", "tars/2.tar")


def test_a_set_in_a_bucket_is_that_on_a_disk_and_goes_on_where_it_was_stopped(
    bucket, tmp_path, monkeypatch
):
    def build(place, **keywords):
        keywords = {"recipe": {"of": "letters"}} | keywords
        return builder.build(place, "small", shards.splits(tmp_path / "diary"), **keywords)

    expected = shards.contents(build(tmp_path / "disk"))
    real, left = storage.copy, 0

    def copy(source, target):
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(storage, "copy", copy)
    monkeypatch.setattr(storage, "_AT_ONCE", 1)  # which copies were made is known
    stopped = 0
    for left in range(3, 1000, 4):
        done = {
            name
            for top in paths.unfinished(paths.folder_of(bucket / "again", "small"))
            for name in storage.held(top)
            if (top / name / "report.json").is_file()
        }
        (tmp_path / "diary").unlink(missing_ok=True)
        try:
            folder = build(bucket / "again")
        except KeyboardInterrupt:
            stopped += 1
            assert not paths.is_built(paths.folder_of(bucket / "again", "small"))
        for number in shards.read(tmp_path / "diary", "begin"):
            assert f"train-{number:05d}" not in done
        if left > 0:  # it was not stopped
            break
    assert stopped > 3
    assert contents(folder) == expected
    assert storage.held(folder.parent) == ["1.0.0"]
    with pytest.raises(
        ValueError, match=r'again/small/1\.0\.0 .* of: "letters" there, "words" now'
    ):
        build(bucket / "again", recipe={"of": "words"})
    monkeypatch.undo()
    assert contents(build(bucket / "two", run=executors.processes(2))) == expected
