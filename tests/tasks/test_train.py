import contextlib
import dataclasses
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from pea_jax.assembly import checks, model_factory, trainer
from pea_jax.distill.state import init_train_state
from pea_jax.models.adapter import Adapter, AdapterConfig
from pea_jax.runtime import checkpoint, metrics, parallel
from pea_jax.tasks import train
from pea_jax.weights.adapters import save_adapter
from tests import tiny
from tests.tiny import lines

ADAPTER = AdapterConfig(input_width=3, hidden_width=2, output_width=2)
ROWS = 8


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Folders of the frozen models. Not to be written to."""
    return tiny.write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """Holds the data set "few". Not to be written to."""
    return tiny.write_data(tmp_path_factory.mktemp("data"))


class FakeRun(trainer.Run):
    """A run whose step is a few numbers in Python; `seen` is what happened, in order.

    A step adds the batch's number to every parameter, and its loss is that number.

    Args:
      on_step: called with the number of each step, before it is taken; may return other metrics.
    """

    def __init__(self, on_step: Callable[[int], dict | None] = lambda step: None):
        self.seen: list[str] = []
        mesh = parallel.make_mesh(devices=jax.devices()[:1])
        params = nnx.state(Adapter(ADAPTER, rngs=nnx.Rngs(0)))
        batches = grain.MapDataset.range(1000).shuffle(seed=3).map(self._batch)

        def step(state, frozen, batch, key):
            number = int(state.step) + 1
            self.seen.append(f"step {number}")
            others = on_step(number) or {}
            drawn = batch["x"][0]
            params = jax.tree.map(lambda leaf: leaf + drawn, state.params)
            state = jax.tree.map(lambda leaf: leaf, state)
            state = type(state)(state.step + 1, params, state.opt_state, state.ema)
            return state, {"loss": jnp.float32(drawn), "number": np.int32(number), **others}

        fields = {
            "mesh": mesh,
            "state": init_train_state(params, optax.sgd(1.0, momentum=0.9)),
            "frozen": {},
            "step": step,
            "key": jax.random.key(0),
            "loader": iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1))),
            "learning_rate": lambda step: step / 10,
            "pipeline": None,
            "adapter": ADAPTER,
        }
        fields["loader"].size = lambda step: (8, 8)
        fields["loader"].keys = lambda step: {"parallel": [f"row {self.drawn(step + 1)}"]}
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @staticmethod
    def _batch(index: int) -> dict[str, np.ndarray]:
        return {"x": np.full((ROWS,), index, np.float32)}

    @staticmethod
    def drawn(step: int) -> int:
        """The number of the batch of a step, counted from 1."""
        return int(grain.MapDataset.range(1000).shuffle(seed=3)[step - 1])

    # A dataclass forbids it; a fake notes what it sees.
    __setattr__ = object.__setattr__


@pytest.fixture
def go(monkeypatch, tmp_path):
    """Trains a fake run in tmp_path/run: go(steps=..., ...) -> the fake."""

    def go(on_step=lambda step: None, *, languages=("zh",), **fields) -> FakeRun:
        fake = FakeRun(on_step)
        monkeypatch.setattr(train, "build", lambda config: fake)
        fetch = jax.device_get

        def device_get(tree):
            if isinstance(tree, dict) and "number" in tree:
                fake.seen.append(f"fetch {int(tree['number'])}")
            return fetch(tree)

        monkeypatch.setattr(train.jax, "device_get", device_get)
        fields = {"train__" + name: value for name, value in fields.items()}
        fields |= {"data__batch_size": ROWS, "data__languages": languages}
        made = tiny.config(Path("models"), Path("data"), **fields)
        train.train(made, tmp_path / "run")
        return fake

    return go


def saved(workdir: Path) -> list[int]:
    """The steps of the whole checkpoints."""
    names = [entry.name for entry in (workdir / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


def test_what_is_saved_and_logged_when(go, tmp_path):
    go(steps=7, save_every=3, log_every=2, keep=9)
    assert saved(tmp_path / "run") == [3, 6, 7]
    assert lines(tmp_path / "run") == [
        {
            "step": step,
            "loss": float(FakeRun.drawn(step)),
            "number": float(step),
            # Of the step itself, which the schedule counts from 0.
            "learning_rate": (step - 1) / 10,
        }
        for step in (2, 4, 6, 7)
    ]
    adapter, step = model_factory.load_trained_adapter(tmp_path / "run", step=6)
    first = Adapter(ADAPTER, rngs=nnx.Rngs(0)).layernorm.bias[...]
    total = sum(FakeRun.drawn(step) for step in range(1, 7))
    assert step == 6
    np.testing.assert_array_equal(adapter.layernorm.bias[...], first + total)


def test_metrics_are_fetched_while_the_next_step_is_computed_and_before_a_save(go):
    fake = go(steps=5, save_every=3)
    assert fake.seen == [
        "step 1",
        *("step 2", "fetch 1"),
        *("step 3", "fetch 2", "fetch 3"),
        "step 4",
        *("step 5", "fetch 4", "fetch 5"),
    ]


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(go, tmp_path, capsys):
    go(steps=9, save_every=4, log_every=2)
    (tmp_path / "run").rename(tmp_path / "straight")
    go(steps=5, save_every=4, log_every=2)
    fake = go(steps=9, save_every=4, log_every=2)
    assert "going on from step 5" in capsys.readouterr().err
    assert fake.seen[0] == "step 6"
    straight, resumed = lines(tmp_path / "straight"), lines(tmp_path / "run")
    assert [line for line in resumed if line["step"] != 5] == straight
    assert_equal_checkpoints(tmp_path / "straight", tmp_path / "run", 9)


def test_a_run_that_is_done_is_left_as_it_is(go, tmp_path, capsys):
    go(steps=3)
    before = lines(tmp_path / "run")
    fake = go(steps=3)
    assert fake.seen == []
    assert "has step 3 of 3: nothing is left to train" in capsys.readouterr().err
    assert lines(tmp_path / "run") == before


def test_a_term_that_is_not_finite_stops_before_it_is_saved_or_logged(go, tmp_path):
    def on_step(step):
        return {"loss_output": np.float32(np.nan if step == 4 else 1.0)}

    file = tmp_path / "run" / "not-finite" / "00000004-process-0.json"
    message = f"step 4: not finite: loss_output = nan (its rows: {file})"
    with pytest.raises(FloatingPointError, match=re.escape(message)):
        go(on_step, steps=9, save_every=2, keep=9)
    dumped = json.loads(file.read_text())
    assert dumped["step"] == 4
    assert dumped["metrics"]["loss_output"] == "nan"
    assert dumped["keys"] == {"parallel": [f"row {FakeRun.drawn(4)}"]}
    assert saved(tmp_path / "run") == [2]
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3]


def test_the_loss_of_each_language_is_over_the_steps_since_the_last_line(go, tmp_path):
    """Saving fetches a step apart from the others, and loses none of them."""

    def on_step(step):
        rows = np.float32([step % 2, 2, 0])
        return {"language_loss": rows * np.float32([step, 2 * step, 0]), "language_rows": rows}

    languages = ("zh", "ja", "ko")
    go(on_step, steps=5, save_every=3, log_every=2, languages=languages)
    losses = [
        {name: value for name, value in line.items() if name.startswith(("loss/", "language"))}
        for line in lines(tmp_path / "run")
    ]
    assert losses == [
        {"loss/zh": 1.0, "loss/ja": 3.0},
        {"loss/zh": 3.0, "loss/ja": 7.0},
        {"loss/zh": 5.0, "loss/ja": 10.0},
    ]


def test_a_language_whose_loss_is_not_finite_is_named(go, tmp_path):
    def on_step(step):
        sums = np.float32([1, np.inf if step == 3 else 1])
        return {"language_loss": sums, "language_rows": np.float32([1, 1])}

    with pytest.raises(FloatingPointError, match="step 3: not finite: loss/ja = inf"):
        go(on_step, steps=5, languages=("zh", "ja"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(go, tmp_path, capfd, number):
    def on_step(step):
        if step == 4:
            os.kill(os.getpid(), number)

    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    line = f"stopped at step 4 of 9, which is saved; go on with: pea-jax train --workdir {tmp_path}"
    if number == signal.SIGINT:
        with pytest.raises(KeyboardInterrupt, match=re.escape(line)):
            go(on_step, steps=9, save_every=100, log_every=100)
    else:
        # A scheduler's notice: the run did what it should.
        go(on_step, steps=9, save_every=100, log_every=100)
        assert line in capfd.readouterr().err
    assert saved(tmp_path / "run") == [4]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_the_second_signal_ends_the_process_at_once():
    program = (
        "import os, signal, time; from pea_jax.runtime.stopping import StopRequest\n"
        "with StopRequest(0) as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    assert stop.signal == signal.SIGINT\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=300)
    assert done.returncode == 130
    assert done.stderr.count(b"stopping after this step") == 1


def test_a_workdir_of_another_config_is_refused_before_anything_is_loaded(go, tmp_path):
    go(steps=2)
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}

    def build(config):
        raise AssertionError("loaded")

    train.build = build  # `go` has put a fake in its place, and takes it back
    made = tiny.config(Path("models"), Path("data"), seed=5, train__steps=4)
    with pytest.raises(ValueError, match=r"another config .*seed: 0 there, 5 here"):
        train.train(made, tmp_path / "run")
    after = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    assert after == before


def test_a_run_of_an_older_version_continues_with_the_defaults_of_newer_fields(go, tmp_path):
    go(steps=2)
    made = checkpoint.read_config(tmp_path / "run")
    older = json.loads(json.dumps(made))
    del older["optim"]["ema_decay"], older["data"]["per_device"]
    checkpoint.write_config(tmp_path / "run", older)
    go(steps=4)
    assert saved(tmp_path / "run")[-1] == 4
    made["train"]["steps"] = 4
    assert checkpoint.read_config(tmp_path / "run") == made


def test_what_cannot_be_loaded_leaves_no_trace(monkeypatch, tmp_path):
    def build(config):
        raise ValueError("no such weights")

    monkeypatch.setattr(train, "build", build)
    with pytest.raises(ValueError, match="no such weights"):
        train.train(tiny.config(tmp_path, tmp_path), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_the_best_checkpoint_is_that_of_the_lowest_mean_loss(go, tmp_path):
    go(steps=12, save_every=2, keep=1, keep_best=True)
    means = {step: FakeRun.drawn(step - 1) + FakeRun.drawn(step) for step in range(2, 13, 2)}
    best = min(means, key=means.get)
    assert best != 12
    assert saved(tmp_path / "run") == [best, 12]


def test_sample_grids_are_drawn_when_due(go, monkeypatch, tmp_path):
    drawn = []

    def sample_grid(run, state, config):
        drawn.append(int(state.step))
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(train, "sample_grid", sample_grid)
    go(steps=7, save_every=4, sample_every=3)
    assert drawn == [3, 6]
    assert saved(tmp_path / "run") == [4, 7]


def test_nothing_is_compiled_once_a_run_has_seen_each_kind_of_step(models, data_dir, tmp_path):
    """Steps, saving and sample grids: from the second of each on, programs are there already."""
    made = tiny.config(
        models,
        data_dir,
        train__steps=12,
        train__save_every=3,
        train__sample_every=4,
        train__sample_prompts=("红", "蓝"),
    )
    train.train(made, tmp_path / "run")
    compiled = {
        line["step"]: line["compilations"] for line in metrics.read_metrics(tmp_path / "run")
    }
    assert compiled[1] > 0
    assert compiled[5] == compiled[12]


@pytest.fixture(scope="module")
def aspects(data_dir) -> dict[str, object]:
    """Fields of a config that trains in three buckets, with rows of all of them."""
    tiny.write_data(data_dir, "aspects", [(64, 40), (64, 64), (40, 64)])
    buckets = ((24, 16, 0.25), (16, 16, 0.5), (16, 24, 0.25))
    return {"data__dataset": "aspects", "data__buckets": buckets, "data__native_batch_size": 8}


@pytest.mark.filterwarnings("ignore::pea_jax.data.buckets.BucketWarning")
def test_each_bucket_compiles_one_program_once(
    models, data_dir, aspects, tmp_path, monkeypatch, capsys
):
    build, built = train.build, []
    monkeypatch.setattr(train, "build", lambda config: built.append(build(config)) or built[0])
    made = tiny.config(models, data_dir, **aspects, train__steps=16, train__save_every=16)
    train.train(made, tmp_path / "run")
    sizes = [built[0].loader.size(step) for step in range(16)]
    first = {sizes.index(size) for size in set(sizes)}
    assert len(first) == 3
    assert built[0].step._cache_size() == 3
    compiled = re.findall(r"compiled for (\d+x\d+) in", capsys.readouterr().err)
    assert compiled == [f"{sizes[step][0]}x{sizes[step][1]}" for step in sorted(first)]
    # A line is written when the step after its own has been sent off, and compiled if it is new.
    counts = [line["compilations"] for line in metrics.read_metrics(tmp_path / "run")]
    for index in range(1, 15):
        assert counts[index] - counts[index - 1] == (index + 1 in first), index
    assert counts[15] == counts[14]


def test_the_work_of_a_step_is_counted_by_its_size(models, data_dir, aspects, monkeypatch):
    made = tiny.config(models, data_dir, **aspects)
    mesh = parallel.make_mesh()
    assert trainer.model_flops(made, mesh)((16, 16)) is None, "of a CPU nobody knows the peak"
    monkeypatch.setattr(trainer.chips, "find", lambda kind: object())
    known = trainer.model_flops(made, mesh)
    deadline = time.monotonic() + 240
    while known((24, 16)) is None or known((16, 16)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert known((24, 16)) == known((16, 24))
    # Convolutions grow with the pixels, attention with their square, and texts not at all.
    assert 1.2 < known((24, 16)) / known((16, 16)) < 2.25


def test_what_export_will_not_write_is_said_before_weights_are_read(
    models, data_dir, monkeypatch, recwarn
):
    def load(*arguments, **keywords):
        raise AssertionError("weights were read")

    monkeypatch.setattr(trainer, "load_base", load)
    monkeypatch.setattr(trainer, "export_problems", lambda language: ["The tokenizer is odd."])
    with pytest.raises(AssertionError, match="weights were read"):
        trainer.build(tiny.config(models, data_dir))
    (warning,) = (one for one in recwarn if one.category is trainer.ExportWarning)
    assert "and no diffusers/: The tokenizer is odd." in str(warning.message)


def test_pictures_that_the_models_do_not_take_are_refused(models, data_dir, monkeypatch):
    def load(*arguments, **keywords):
        raise AssertionError("weights were read")

    monkeypatch.setattr(trainer, "load_base", load)
    for fields, message in (
        ({"data__image_size": 17}, "data.image_size: expected .* multiples of 2, .* got 17x17"),
        (
            {"data__buckets": ((16, 16, 1.0), (24, 15, 1.0), (9, 16, 1.0))},
            "data.buckets: expected .* multiples of 2, .* got 24x15, 9x16",
        ),
        ({"data__buckets": ((16, 16, 0.0),)}, "data.buckets: expected .height, width, probabil"),
        ({"data__crop": "middle"}, "data.crop: expected centre or random, got 'middle'"),
        ({"data__language_weights": (1, 2)}, "data.language_weights: expected none or 1 positive"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer.build(tiny.config(models, data_dir, **fields))


def test_build_places_everything_on_the_mesh(models, data_dir):
    made = tiny.config(models, data_dir, optim__ema_decay=0.9, mesh__data=2, mesh__fsdp=4)
    built = trainer.build(made)
    assert dict(built.mesh.shape) == {"data": 2, "fsdp": 4}
    replicated = parallel.replicated(built.mesh)
    assert {leaf.sharding for leaf in jax.tree.leaves(built.state)} == {replicated}
    assert all(leaf.sharding.mesh == built.mesh for leaf in jax.tree.leaves(built.frozen))
    assert built.adapter == AdapterConfig(input_width=24, hidden_width=8, output_width=16)
    jax.tree.map(np.testing.assert_array_equal, built.state.ema, built.state.params)
    with contextlib.closing(built.loader) as loader:
        batch = next(loader)
    assert batch["native"]["pixels"].shape == (8, 16, 16, 3)
    assert batch["parallel"]["english_ids"].shape == (8, tiny.ENGLISH_TOKENS)
    assert built.frozen["empty"]["ids"].shape == (1, tiny.NATIVE_TOKENS)
    # The sample grids are drawn with the very arrays that training reads.
    arrays = {id(leaf) for leaf in jax.tree.leaves(built.frozen["unet"])}
    assert {id(leaf) for leaf in jax.tree.leaves(nnx.state(built.pipeline.base.unet))} == arrays


@pytest.mark.parametrize("place", ["good", "released.safetensors"])
def test_an_adapter_goes_on_from_a_given_one(models, data_dir, tmp_path, monkeypatch, place):
    """An export, or a bare file of the authors' keys; its own projector, not the config's."""
    adapter = Adapter(AdapterConfig(24, 9, 16, projector_layers=4), rngs=nnx.Rngs(7))
    names = {"base_model": "a", "language_encoder": "b"}
    save_adapter(tmp_path / "good", adapter, metadata=names)
    shutil.copy(tmp_path / "good" / "adapter.safetensors", tmp_path / "released.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    built = trainer.build(tiny.config(models, data_dir, adapter__init_from=f"~/{place}"))
    built.loader.close()
    assert built.adapter == adapter.config
    jax.tree.map(np.testing.assert_array_equal, built.state.params, nnx.state(adapter))


def test_widths_are_checked_before_weights_are_read(models, data_dir, tmp_path, monkeypatch):
    def load(*arguments, **keywords):
        raise AssertionError("weights were read")

    monkeypatch.setattr(trainer, "load_base", load)
    monkeypatch.setattr(trainer, "load_language_encoder", load)
    names = {"base_model": "a", "language_encoder": "b"}
    for config_, message in (
        (AdapterConfig(23, 8, 16), r"input_width: expected 24 \(the language encoder's width\)"),
        (AdapterConfig(24, 8, 17), r"output_width: expected 16 \(the UNet's cross_attention_dim\)"),
        (AdapterConfig(24, 8, 16, pooled_width=9), r"pooled_width: expected none .*, got 9"),
    ):
        folder = tmp_path / str(config_)
        save_adapter(folder, Adapter(config_, rngs=nnx.Rngs(0)), metadata=names)
        with pytest.raises(ValueError, match=message):
            trainer.build(tiny.config(models, data_dir, adapter__init_from=str(folder)))
    with pytest.raises(ValueError, match="no data set 'many'"):
        trainer.build(tiny.config(models, data_dir, data__dataset="many"))


def test_numbers_that_cannot_be_are_told_together():
    made = tiny.config(
        Path("models"),
        Path("data"),
        train__steps=0,
        train__sample_every=5,
        train__sample_prompts=(),
        data__native_batch_size=17,
        distill__hybrid=False,
    )
    with pytest.raises(ValueError, match=r"train\.steps: expected at least 1, got 0") as error:
        checks.check(made, data_shards=1)
    for message in (
        "train.sample_prompts: expected a prompt or more",
        "data.native_batch_size: expected 0 to data.batch_size = 16, got 17",
        "without distill.hybrid every row is parallel, expected 0, got 17",
    ):
        assert message in str(error.value)
    uneven = tiny.config(Path("models"), Path("data"), data__native_batch_size=4)
    with pytest.raises(ValueError, match="native has 4 rows and parallel has 12 rows"):
        checks.check(uneven, data_shards=8)


def test_a_sample_grid_shows_the_average_adapter(models, data_dir, monkeypatch):
    made = tiny.config(
        models,
        data_dir,
        optim__ema_decay=0.9,
        train__sample_prompts=("一", "红"),
        sample__seed=11,
        sample__solver="euler",
    )
    built = trainer.build(made)
    built.loader.close()
    average = jax.tree.map(lambda leaf: leaf + 0.5, built.state.params)
    state = dataclasses.replace(built.state, ema=average)
    calls = []

    def batches(pipeline, prompts, settings, *, seed):
        calls.append((pipeline, prompts, settings, seed))
        yield np.full((1, 16, 16, 3), 100, np.uint8)
        yield np.full((1, 16, 16, 3), 200, np.uint8)

    monkeypatch.setattr(trainer.Pipeline, "batches", batches)
    image = train.sample_grid(built, state, made)
    ((pipeline, prompts, settings, seed),) = calls
    jax.tree.map(np.testing.assert_array_equal, nnx.state(pipeline.adapter), average)
    assert (prompts, seed, settings.solver, settings.steps) == (["一", "红"], 11, "euler", 2)
    assert pipeline.base is built.pipeline.base
    assert {100, 200} <= set(image.reshape(-1).tolist())


# Real processes, stopped in every way.

STEPS, SAVE_EVERY = 16, 4


def command(workdir: Path) -> list[str]:
    return [sys.executable, "-m", "pea_jax", "train", "--workdir", str(workdir)]


@pytest.fixture(scope="module")
def start(models, data_dir, tmp_path_factory):
    """Starts a real run on one device: start(workdir) -> process."""
    cache = tmp_path_factory.mktemp("cache")
    # Compiled without optimisation, and once: what is tested is not the speed of a step.
    flags = "--xla_backend_optimization_level=0"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"}
    repository = Path(__file__).parents[2]

    def start(workdir: Path) -> subprocess.Popen:
        if not workdir.exists():
            made = tiny.config(
                models,
                data_dir,
                data__batch_size=4,
                data__native_batch_size=2,
                optim__ema_decay=0.5,
                train__steps=STEPS,
                train__save_every=SAVE_EVERY,
                train__compilation_cache=str(cache),
            )
            checkpoint.write_config(workdir, made.to_dict())
        return subprocess.Popen(
            command(workdir),
            env=environment,
            cwd=repository,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def wait_until(process: subprocess.Popen, happened: Callable[[], bool]) -> None:
    for _ in itertools.count():
        if happened():
            return
        assert process.poll() is None, f"ended too soon:\n{process.stderr.read()}"
        time.sleep(0.001)


def logged(workdir: Path, step: int) -> Callable[[], bool]:
    """Whether the line of a step is on file."""

    def happened() -> bool:
        return any(line["step"] == step for line in metrics.read_metrics(workdir))

    return happened


def half_written(workdir: Path) -> Iterator[tuple[str, int]]:
    folder = workdir / "checkpoints"
    for entry in os.scandir(folder) if folder.exists() else ():
        if "tmp" in entry.name:
            yield entry.name, entry.inode()


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(folder).item_metadata.tree
        to_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=to_numpy))


def assert_equal_checkpoints(first: Path, second: Path, step: int) -> None:
    """Every array of adapter, average and optimiser, bit for bit; and the place in the data."""
    folders = [workdir / "checkpoints" / f"{step:08d}" for workdir in (first, second)]
    for item in ("adapter", "optimizer", "ema"):
        if not (folders[0] / item).exists():
            assert not (folders[1] / item).exists()
            continue
        a, b = (read_arrays(folder.absolute() / item) for folder in folders)
        assert a.keys() == b.keys()
        assert a
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)
    states = [(folder / "data" / "process_0-of-1.json").read_text() for folder in folders]
    assert json.loads(states[0]) == json.loads(states[1])


def test_however_a_run_is_stopped_it_goes_on_bit_for_bit(start, tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    with start(straight) as process:
        err = process.communicate()[1]
    assert process.returncode == 0, err
    assert [line["step"] for line in lines(straight)] == list(range(1, STEPS + 1))

    seed = random.randrange(2**32)
    sys.stdout.write(f"random.Random({seed})")  # shown where the test fails
    choose = random.Random(seed)

    # Ctrl-C.
    with start(broken) as process:
        wait_until(process, logged(broken, choose.randint(1, 3)))
        process.send_signal(signal.SIGINT)
        *_, last = process.communicate()[1].splitlines()
    assert process.returncode == 130
    match = re.fullmatch(
        rf"pea-jax train: stopped at step (\d+) of {STEPS}, which is saved; "
        rf"go on with: pea-jax train --workdir {broken}",
        last,
    )
    assert match, last
    stopped = int(match[1])
    assert saved(broken)[-1] == stopped

    # kill -9 at any step.
    with start(broken) as process:
        wait_until(process, logged(broken, choose.randint(stopped + 1, 9)))
        process.kill()
    survivor = saved(broken)[-1]
    assert survivor >= stopped

    # kill -9 while a checkpoint is being written.
    with start(broken) as process:
        before = set(half_written(broken))
        wait_until(process, lambda: set(half_written(broken)) - before)
        time.sleep(choose.random() * 0.02)
        process.kill()
    survivor, before = saved(broken)[-1], survivor
    assert survivor >= before

    with start(broken) as process:
        err = process.communicate()[1]
    assert process.returncode == 0, err
    assert f"going on from step {survivor}" in err
    assert lines(broken) == lines(straight)
    assert_equal_checkpoints(straight, broken, STEPS)
