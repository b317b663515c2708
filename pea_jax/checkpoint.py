"""What a run leaves in its workdir to go on from: the config it was started with, and checkpoints.

    workdir/config.json          of the run; another config is refused (`check_config`)
    workdir/checkpoints/STEP/    adapter, ema, optimizer, data (the iterator of every process), meta

A checkpoint holds what training changes and never the frozen weights. Orbax writes it beside its
place and renames it when it is whole, so a killed run leaves the checkpoint before, untouched.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grain.checkpoint as grain_checkpoint
import jax
import orbax.checkpoint as ocp
from flax import nnx
from orbax.checkpoint import checkpoint_managers

from pea_jax.models.adapter import Adapter, AdapterConfig

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"

#: Fields, and groups of fields, that may differ between the sittings of one run: none of them
#: changes what a step computes. Everything else makes it another run, with another workdir.
MAY_CHANGE = (
    "train",
    "sample",
    "evaluate",
    "mesh",
    "data.data_dir",
    "data.workers",
    "data.max_bad_images",
)

Tree = Any
_ABSENT = "(absent)"


def check_config(workdir: Path, config: Mapping[str, Any]) -> None:
    """Refuse a workdir that holds a run of another config.

    Args:
        workdir: may be missing.
        config: nested, of what JSON can hold.

    Raises:
        ValueError: names every field that differs and is not under MAY_CHANGE; or the workdir is a
            file, or holds checkpoints without a config.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"{workdir}: expected a folder for the run, or nothing")
    if not (workdir / CONFIG_FILE).exists():
        if _steps(workdir):
            raise ValueError(f"{workdir} holds checkpoints but no {CONFIG_FILE}")
        return
    before, now = _flatten(read_config(workdir)), _flatten(_as_json(config))
    differing = [
        f"{field}: {before.get(field, _ABSENT)!r} there, {now.get(field, _ABSENT)!r} here"
        for field in sorted(before.keys() | now.keys())
        if before.get(field, _ABSENT) != now.get(field, _ABSENT) and not _may_change(field)
    ]
    if differing:
        raise ValueError(
            f"{workdir} holds a run of another config ({'; '.join(differing)}): give these fields "
            "their old values, or this run another workdir"
        )


def write_config(workdir: Path, config: Mapping[str, Any]) -> None:
    """Write the config of the run, making the workdir; to be called after `check_config`."""
    workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_as_json(config), indent=2, ensure_ascii=False)
    replace_text(workdir / CONFIG_FILE, text + "\n")


def read_config(workdir: Path) -> dict[str, Any]:
    """The config of the run in `workdir`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is not a JSON object.
    """
    file = workdir / CONFIG_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{workdir} holds no run: expected {file}")
    try:
        config = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: expected a JSON object ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file}: expected a JSON object, got a {type(config).__name__}")
    return config


def replace_text(file: Path, text: str) -> None:
    """Write `text` to `file` in one stroke: a reader, or a kill, sees the old or the new whole."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(text, "utf-8")
    draft.replace(file)


class Checkpointer:
    """The checkpoints of one run, written in the background; used as a context manager.

    Args:
        workdir: of the run.
        keep: how many of the latest checkpoints stay.
        keep_best: whether the one of the lowest `loss` given to `save` stays too.
    """

    def __init__(self, workdir: Path, *, keep: int = 3, keep_best: bool = False):
        if keep < 1:
            raise ValueError(f"keep: expected at least 1 checkpoint, got {keep}")
        policies: list[Any] = [checkpoint_managers.LatestN(keep)]
        if keep_best:
            policies.append(checkpoint_managers.BestN(get_metric_fn=_negated_loss, n=1))
        self._manager = ocp.CheckpointManager(
            (workdir / CHECKPOINTS).absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=True,
                step_format_fixed_length=8,
            ),
        )

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        # A process of several that fails must not wait for others, which may be gone.
        if kind is None or jax.process_count() == 1:
            self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """The step of the latest whole checkpoint, None before the first."""
        return self._manager.latest_step()

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of every checkpoint kept, in rising order."""
        return tuple(sorted(self._manager.all_steps()))

    def save(
        self,
        step: int,
        state: Tree,
        data_iterator: Iterator[Any],
        *,
        adapter: AdapterConfig,
        seed: int,
        loss: float | None = None,
    ) -> bool:
        """Save `state` after `step` steps; returns as soon as the arrays are copied to the host.

        Args:
            step: how many steps were taken.
            state: of training, with attributes params, ema (or None), opt_state and step.
            data_iterator: a Grain iterator, standing after the batch of this step.
            adapter: the shape of `params`, so that the adapter can be read without the config.
            seed: of the run; the key of a step follows from it and the step.
            loss: what `keep_best` compares.

        Returns:
            False where this step was saved already.
        """
        if self.latest_step == step:
            return False
        meta = {"step": step, "seed": seed, "adapter": dataclasses.asdict(adapter)}
        items = {
            "adapter": ocp.args.PyTreeSave(_pack(state.params)),
            "optimizer": ocp.args.PyTreeSave(_pack((state.opt_state, state.step))),
            "data": grain_checkpoint.CheckpointSave(data_iterator),
            "meta": ocp.args.JsonSave(meta),
        }
        if state.ema is not None:
            items["ema"] = ocp.args.PyTreeSave(_pack(state.ema))
        metrics = None if loss is None else {"loss": float(loss)}
        return self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)

    def restore(
        self, state: Tree, data_iterator: Iterator[Any], *, seed: int
    ) -> tuple[Tree, Iterator[Any]]:
        """The latest checkpoint, in the form and on the devices of `state`.

        Args:
            state: as for `save`, of a run that has just begun; its arrays say shapes and shardings.
            data_iterator: its position is set.
            seed: of the run.

        Raises:
            ValueError: the checkpoint is of another seed, or does not have the form of `state`.
        """
        step = self.latest_step
        if step is None:
            raise ValueError("no checkpoint to restore")
        trees = {"adapter": state.params, "optimizer": (state.opt_state, state.step)}
        if state.ema is not None:
            trees["ema"] = state.ema
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                meta=ocp.args.JsonRestore(),
                data=grain_checkpoint.CheckpointRestore(data_iterator),
                **{item: _restore_args(_pack(tree)) for item, tree in trees.items()},
            ),
        )
        if restored["meta"]["seed"] != seed:
            raise ValueError(
                f"checkpoint {step} of {self._manager.directory}: expected seed {seed}, "
                f"got {restored['meta']['seed']}"
            )
        values = {item: _unpack(tree, restored[item]) for item, tree in trees.items()}
        state = dataclasses.replace(
            state,
            params=values["adapter"],
            ema=values.get("ema"),
            opt_state=values["optimizer"][0],
            step=values["optimizer"][1],
        )
        return state, restored["data"]

    def wait(self) -> None:
        """Wait until what was saved is on disk.

        Raises:
            OSError: it could not be written.
        """
        self._manager.wait_until_finished()
        self._manager.check_for_errors()


def load_adapter(workdir: Path, *, step: int | None = None) -> tuple[Adapter, int]:
    """The trained adapter of a run, its moving average where the run keeps one.

    Args:
        workdir: of the run, which may be going on.
        step: of the checkpoint; None takes the latest.

    Returns:
        The adapter, float32, uncommitted on the default device, and its step.

    Raises:
        FileNotFoundError: the workdir has no checkpoint, or none of this step.
    """
    steps = _steps(workdir)
    if not steps:
        raise FileNotFoundError(f"{workdir} holds no checkpoint: expected one in {CHECKPOINTS}/")
    step = max(steps) if step is None else step
    if step not in steps:
        raise FileNotFoundError(
            f"{workdir} holds no checkpoint of step {step}: there are {', '.join(map(str, steps))}"
        )
    folder = (workdir / CHECKPOINTS).absolute() / f"{step:08d}"
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        meta = reader.restore(folder / "meta")
    config = AdapterConfig(**meta["adapter"])
    graph, state = nnx.split(nnx.eval_shape(lambda: Adapter(config, rngs=nnx.Rngs(0))))
    item = "ema" if (folder / "ema").exists() else "adapter"
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    form = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), _pack(state)
    )
    with ocp.PyTreeCheckpointer() as reader:
        values = reader.restore(folder / item, args=_restore_args(form))
    # Through the host: an array of a checkpoint is committed to its device, a fresh one is not.
    values = {key: jax.numpy.asarray(jax.device_get(value)) for key, value in values.items()}
    return nnx.merge(graph, _unpack(state, values)), step


def _negated_loss(metrics: Mapping[str, float]) -> float:
    return -metrics["loss"]


def _steps(workdir: Path) -> list[int]:
    """The steps of the whole checkpoints of a workdir, in rising order."""
    folder = workdir / CHECKPOINTS
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(config)))


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _may_change(field: str) -> bool:
    return any(field == name or field.startswith(f"{name}.") for name in MAY_CHANGE)


def _pack(tree: Tree) -> dict[str, Any]:
    """The leaves by their paths: what is stored does not depend on the classes on the way."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _unpack(like: Tree, packed: Mapping[str, Any]) -> Tree:
    return jax.tree.unflatten(jax.tree.structure(like), [packed[key] for key in _pack(like)])


def _restore_args(packed: Mapping[str, Any]) -> ocp.args.PyTreeRestore:
    form = jax.tree.map(ocp.utils.to_shape_dtype_struct, dict(packed))
    return ocp.args.PyTreeRestore(
        form, restore_args=ocp.checkpoint_utils.construct_restore_args(form)
    )
