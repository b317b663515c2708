import dataclasses
import json
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pea_jax.assembly import model_factory
from pea_jax.models.adapter import Adapter, AdapterConfig
from pea_jax.runtime import checkpoint

CONFIG = {
    "seed": 3,
    "optim": {"learning_rate": 1e-3, "warmup_steps": 5},
    "train": {"steps": 10, "sample_prompts": ("一", "二")},
    "data": {"workers": 0, "image_size": 64},
}
ADAPTER = AdapterConfig(input_width=6, hidden_width=5, output_width=4)


@dataclasses.dataclass(frozen=True)
class State:
    step: Any
    params: Any
    opt_state: Any
    ema: Any


def make_state(step: int, *, ema: bool = True) -> State:
    """Every leaf has values of its own, which depend on the step."""
    params = nnx.state(Adapter(ADAPTER, rngs=nnx.Rngs(step)))
    opt_state = optax.adamw(1e-3).init(params)
    opt_state = jax.tree.map(lambda leaf: leaf + step + 0, opt_state)
    average = jax.tree.map(lambda leaf: leaf * 2 + step, params) if ema else None
    return State(jnp.int32(step), params, opt_state, average)


def blank(state: State) -> State:
    return jax.tree.map(jnp.zeros_like, state)


jax.tree_util.register_dataclass(State, ["step", "params", "opt_state", "ema"], [])


def numbers() -> grain.DatasetIterator:
    return iter(grain.MapDataset.range(100).shuffle(seed=1).to_iter_dataset())


def save(workdir: Path, steps: list[int], **options: Any) -> tuple[int, ...]:
    losses = options.pop("losses", [None] * len(steps))
    ema = options.pop("ema", True)
    with checkpoint.Checkpointer(workdir, **options) as checkpoints:
        for step, loss in zip(steps, losses, strict=True):
            iterator = numbers()
            for _ in range(step):
                next(iterator)
            state = make_state(step, ema=ema)
            assert checkpoints.save(step, state, iterator, adapter=ADAPTER, seed=7, loss=loss)
        checkpoints.wait()
        return checkpoints.steps


def changed(**fields: Any) -> dict:
    config = json.loads(json.dumps(CONFIG))
    for name, value in fields.items():
        group, _, field = name.partition("__")
        if field:
            config[group][field] = value
        else:
            config[group] = value
    return config


def test_config_is_kept_as_json_lists_for_tuples(tmp_path):
    checkpoint.write_config(tmp_path / "a" / "b", CONFIG)
    assert checkpoint.read_config(tmp_path / "a" / "b") == changed()
    # The same config, passed again by the task, is not another one.
    checkpoint.check_config(tmp_path / "a" / "b", CONFIG)


@pytest.mark.parametrize(
    "config",
    [changed(train__steps=99), changed(data__workers=4), changed(train__sample_prompts=["三"])],
)
def test_fields_that_change_no_step_may_change(tmp_path, config):
    checkpoint.write_config(tmp_path, CONFIG)
    checkpoint.check_config(tmp_path, config)
    checkpoint.write_config(tmp_path, config)
    assert checkpoint.read_config(tmp_path) == config


def test_another_config_is_refused_with_every_field_that_differs(tmp_path):
    checkpoint.write_config(tmp_path, CONFIG)
    other = changed(seed=4, optim__learning_rate=2e-3, data__workers=2)
    del other["data"]["image_size"]
    other["optim"]["new"] = "x"
    with pytest.raises(ValueError, match="another config") as error:
        checkpoint.check_config(tmp_path, other)
    for message in (
        "seed: 3 there, 4 here",
        "optim.learning_rate: 0.001 there, 0.002 here",
        "data.image_size: 64 there, '(absent)' here",
        "optim.new: '(absent)' there, 'x' here",
    ):
        assert message in str(error.value)
    assert "workers" not in str(error.value)
    assert "warmup" not in str(error.value)


def test_a_field_that_a_run_lacks_has_its_default(tmp_path):
    checkpoint.write_config(tmp_path, CONFIG)
    newer, defaults = changed(optim__new=2), {"optim": {"new": 2}, "seed": 9}
    checkpoint.check_config(tmp_path, newer, defaults=defaults)
    with pytest.raises(ValueError, match=r"config \(optim\.new: 2 there, 3 here\)"):
        checkpoint.check_config(tmp_path, changed(optim__new=3), defaults=defaults)


def test_a_workdir_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no run: expected .*config\.json"):
        checkpoint.read_config(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json: expected a JSON object, got a list"):
        checkpoint.check_config(tmp_path, CONFIG)
    (tmp_path / "config.json").unlink()
    (tmp_path / "checkpoints" / "00000005").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds checkpoints but no config\.json"):
        checkpoint.check_config(tmp_path, CONFIG)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="expected a folder"):
        checkpoint.check_config(tmp_path / "file", CONFIG)


@pytest.mark.parametrize("ema", [True, False])
def test_restore_gives_every_bit_back_where_the_template_lies(tmp_path, ema):
    save(tmp_path, [2, 5], ema=ema)
    everywhere = NamedSharding(Mesh(np.array(jax.devices()), ("d",)), PartitionSpec())
    template = jax.device_put(blank(make_state(1, ema=ema)), everywhere)
    iterator = numbers()
    with checkpoint.Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 5
        state = checkpoints.restore(template, iterator, seed=7)
    expected = make_state(5, ema=ema)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert {leaf.sharding for leaf in jax.tree.leaves(state)} == {everywhere}
    # Five elements were taken before the save; the sixth comes next.
    assert next(iterator) == list(numbers())[5]


def test_a_checkpoint_holds_what_training_changes_and_nothing_else(tmp_path):
    save(tmp_path, [1])
    items = {entry.name for entry in (tmp_path / "checkpoints" / "00000001").iterdir()}
    assert {name for name in items if not name.startswith(("_", "commit"))} == {
        "adapter",
        "ema",
        "optimizer",
        "data",
        "meta",
    }
    meta = json.loads((tmp_path / "checkpoints" / "00000001" / "meta" / "metadata").read_text())
    assert meta == {"step": 1, "seed": 7, "adapter": dataclasses.asdict(ADAPTER)}


def test_restore_refuses_another_seed(tmp_path):
    save(tmp_path, [1])
    with (
        checkpoint.Checkpointer(tmp_path) as checkpoints,
        pytest.raises(ValueError, match="expected seed 8, got 7"),
    ):
        checkpoints.restore(blank(make_state(1)), numbers(), seed=8)


def test_the_latest_stay_and_the_best_if_asked_for(tmp_path):
    losses = [0.3, 0.1, 0.2, 0.4, 0.5]
    assert save(tmp_path / "a", [1, 2, 3, 4, 5], losses=losses, keep=2) == (4, 5)
    kept = save(tmp_path / "b", [1, 2, 3, 4, 5], losses=losses, keep=2, keep_best=True)
    assert kept == (2, 4, 5)
    # A later session knows their losses.
    kept = save(tmp_path / "b", [6, 7, 8], losses=[0.2, 0.3, 0.4], keep=2, keep_best=True)
    assert kept == (2, 7, 8)
    assert model_factory.load_trained_adapter(tmp_path / "b")[1] == 8
    with pytest.raises(ValueError, match="keep: expected at least 1"):
        checkpoint.Checkpointer(tmp_path / "c", keep=0)


def test_a_step_is_saved_once(tmp_path):
    with checkpoint.Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.latest_step is None
        assert checkpoints.save(4, make_state(4), numbers(), adapter=ADAPTER, seed=7)
        assert not checkpoints.save(4, make_state(9), numbers(), adapter=ADAPTER, seed=7)
    adapter, _ = model_factory.load_trained_adapter(tmp_path)
    expected = make_state(4).ema.layernorm.scale[...]
    np.testing.assert_array_equal(adapter.layernorm.scale[...], expected)


def test_what_a_kill_left_half_written_is_not_a_checkpoint(tmp_path):
    save(tmp_path, [3])
    folder = tmp_path / "checkpoints"
    half = folder / "00000006.orbax-checkpoint-tmp"
    (half / "adapter").mkdir(parents=True)
    assert model_factory.load_trained_adapter(tmp_path)[1] == 3
    with checkpoint.Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.steps == (3,)
        # The same step is taken again, and saved in its place.
        assert checkpoints.save(6, make_state(6), numbers(), adapter=ADAPTER, seed=7)
    assert not half.exists()
    assert model_factory.load_trained_adapter(tmp_path)[1] == 6


def test_load_adapter_needs_no_config_and_takes_the_average(tmp_path):
    save(tmp_path, [1, 2])
    adapter, step = model_factory.load_trained_adapter(tmp_path)
    assert (step, adapter.config) == (2, ADAPTER)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(adapter), make_state(2).ema)
    adapter, step = model_factory.load_trained_adapter(tmp_path, step=1)
    assert step == 1
    jax.tree.map(np.testing.assert_array_equal, nnx.state(adapter), make_state(1).ema)

    save(tmp_path / "plain", [1], ema=False)
    adapter, _ = model_factory.load_trained_adapter(tmp_path / "plain")
    jax.tree.map(np.testing.assert_array_equal, nnx.state(adapter), make_state(1).params)


def test_load_adapter_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint: expected one in checkpoints"):
        model_factory.load_trained_adapter(tmp_path)
    save(tmp_path, [1, 2])
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 3: there are 1, 2"):
        model_factory.load_trained_adapter(tmp_path, step=3)
