"""What a run resumes from: its config and its checkpoints, in its workdir.

    workdir/config.json          of the run; another config is refused (`check_config`)
    workdir/checkpoints/STEP/    adapter, ema, optimizer, data (the iterator of every process), meta

A checkpoint holds what training changes and never the frozen weights. Orbax writes it under another
name and renames it when it is whole; in a bucket it writes a commit file last. A kill thus leaves
the checkpoint before intact. A checkpoint that was damaged later is passed over
(`checkpoint_files`).
"""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import grain.checkpoint as grain_checkpoint
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from pea_jax.runtime import checkpoint_files, processes, storage
from pea_jax.runtime.checkpoint_files import CHECKPOINTS, pack
from pea_jax.runtime.storage import AnyPath, StorageError

CONFIG_FILE = "config.json"

#: These fields, and groups of fields, may change on resume: none of them changes what a step
#: computes. Any other change makes it another run, with another workdir.
MAY_CHANGE = (
    "prepare",
    "train",
    "sample",
    "evaluate",
    "mesh",
    "data.data_dir",
    "data.workers",
    "data.max_bad_images",
)

Tree = Any
_LOG = logging.getLogger(__name__)
_ABSENT = "(absent)"


def check_config(
    workdir: AnyPath, config: Mapping[str, Any], *, defaults: Mapping[str, Any] | None = None
) -> None:
    """Refuse a workdir that holds a run of another config.

    Args:
        workdir: may be missing.
        config: nested, of JSON values.
        defaults: like `config`; the values of fields that a run of an older version lacks.

    Raises:
        ValueError: names every differing field that is not under MAY_CHANGE; or the workdir is a
            file, or holds checkpoints without a config.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"{workdir}: expected a folder for the run, or nothing")
    if not (workdir / CONFIG_FILE).exists():
        if checkpoint_files.steps(workdir):
            raise ValueError(f"{workdir} holds checkpoints but no {CONFIG_FILE}")
        return
    before = _flatten(_as_json(defaults or {})) | _flatten(read_config(workdir))
    now = _flatten(_as_json(config))
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


def write_config(workdir: AnyPath, config: Mapping[str, Any]) -> None:
    """Write the config of the run, making the workdir; call it after `check_config`."""
    workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_as_json(config), indent=2, ensure_ascii=False)
    storage.replace_text(workdir / CONFIG_FILE, text + "\n")


def read_config(workdir: AnyPath) -> dict[str, Any]:
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


class SaveError(StorageError):
    """A checkpoint could not be written; earlier ones are whole."""


class Checkpointer(contextlib.AbstractContextManager):
    """The checkpoints of one run, written in the background; used as a context manager.

    Args:
        workdir: of the run.
        keep: the number of latest checkpoints that stay.
        keep_best: whether the one with the lowest `loss` (of `save`) stays too.
    """

    def __init__(self, workdir: AnyPath, *, keep: int = 3, keep_best: bool = False):
        if keep < 1:
            raise ValueError(f"keep: expected at least 1 checkpoint, got {keep}")
        policies: list[Any] = [checkpoint_managers.LatestN(keep)]
        if keep_best:
            policies.append(checkpoint_managers.BestN(get_metric_fn=_negated_loss, n=1))
        self._workdir, self._saved = workdir, None
        folder = workdir / CHECKPOINTS
        self._manager = ocp.CheckpointManager(
            folder if storage.is_bucket(folder) else folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                # It makes Orbax store the loss, by which a later session finds the best one.
                best_fn=_negated_loss if keep_best else None,
                cleanup_tmp_directories=True,
                step_format_fixed_length=8,
            ),
        )

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is not None and processes.process_count() > 1:
            return  # Closing waits for the other processes, which may be gone.
        try:
            with self._saving():
                self._manager.close()
        except SaveError as error:
            if kind is None:
                raise
            _LOG.warning("%s", error)  # the run's own error follows

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
        adapter: Any,
        seed: int,
        loss: float | None = None,
    ) -> bool:
        """Save `state` after `step` steps; returns as soon as the arrays are copied to the host.

        Args:
            step: the number of finished steps.
            state: of training, with attributes params, ema (or None), opt_state and step.
            data_iterator: a Grain iterator, positioned after the batch of this step.
            adapter: the shape of `params`, a dataclass of JSON values; it makes the adapter
                readable without the config.
            seed: of the run; it and the step determine the key of a step.
            loss: the value that `keep_best` compares.

        Returns:
            False where this step was saved already.

        Raises:
            SaveError: this or the previous save could not be written; earlier checkpoints are
                whole.
        """
        if self.latest_step == step:
            return False
        meta = {"step": step, "seed": seed, "adapter": dataclasses.asdict(adapter)}
        items = {
            "adapter": ocp.args.PyTreeSave(pack(state.params)),
            "optimizer": ocp.args.PyTreeSave(pack((state.opt_state, state.step))),
            "data": grain_checkpoint.CheckpointSave(data_iterator),
            "meta": ocp.args.JsonSave(meta),
        }
        if state.ema is not None:
            items["ema"] = ocp.args.PyTreeSave(pack(state.ema))
        metrics = None if loss is None else {"loss": float(loss)}
        with self._saving(step):
            return self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)

    def restore(self, state: Tree, data_iterator: Iterator[Any], *, seed: int) -> Tree:
        """The state of the latest whole checkpoint, with the structure and shardings of `state`.

        Damaged later ones raise a warning and are moved to WORKDIR/damaged, because their steps
        will be saved again. `latest_step` is then that of the checkpoint taken.

        Args:
            state: as for `save`, of a new run; its arrays define shapes and shardings.
            data_iterator: its position is set, for any number of processes that saved it.
            seed: of the run.

        Raises:
            ValueError: the checkpoint has another seed, or another structure than `state`; or none
                is whole. Nothing is moved then.
            StorageError: the storage does not answer.
        """
        if self.latest_step is None:
            raise ValueError("no checkpoint to restore")
        trees = {"adapter": state.params, "optimizer": (state.opt_state, state.step)}
        if state.ema is not None:
            trees["ema"] = state.ema

        def read(folder: AnyPath) -> tuple[dict[str, Tree], Any]:
            checkpoint_files.read_items(folder)
            found = checkpoint_files.read_meta(folder)["seed"]
            if found != seed:
                raise ValueError(
                    f"checkpoint {int(folder.name)} of {self._manager.directory}: "
                    f"expected seed {seed}, got {found}"
                )
            states = checkpoint_files.read_data_states(folder)
            position = checkpoint_files.merge_states(data_iterator, states)
            values = {
                item: checkpoint_files.read_tree(folder, item, like) for item, like in trees.items()
            }
            return values, position

        _, (values, position), damaged = checkpoint_files.latest_whole(
            self._workdir, self.steps, read
        )
        data_iterator.set_state(position)
        if damaged:
            checkpoint_files.set_aside(self._workdir, damaged)
            self._manager.reload()
        opt_state, step = values["optimizer"]
        return dataclasses.replace(
            state, params=values["adapter"], ema=values.get("ema"), opt_state=opt_state, step=step
        )

    def wait(self) -> None:
        """Wait until all saves are on disk.

        Raises:
            SaveError: one could not be written; earlier checkpoints are whole.
        """
        with self._saving():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def _saving(self, step: int | None = None) -> Iterator[None]:
        """Turn an error of this save, or of the one before it, into one line."""
        before, self._saved = self._saved, step or self._saved
        try:
            yield
        except Exception as error:
            failed = " or ".join(str(s) for s in dict.fromkeys((before, step)) if s is not None)
            reason = storage.explain(error) or " ".join(str(error).split()) or repr(error)
            raise SaveError(
                f"{self._workdir / CHECKPOINTS}: the checkpoint of step {failed} "
                f"could not be written ({reason})"
            ) from error


def _negated_loss(metrics: Mapping[str, float]) -> float:
    return -metrics["loss"]


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(config)))


def _flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(config, is_leaf=lambda x: not isinstance(x, dict))
    return {jax.tree_util.keystr(path, simple=True, separator="."): value for path, value in leaves}


def _may_change(field: str) -> bool:
    return f"{field}.".startswith(tuple(f"{name}." for name in MAY_CHANGE))
