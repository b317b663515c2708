"""The files of a saved checkpoint: each process reads and checks them by itself.

Orbax recognises a checkpoint that was never finished, but not one that lost a file, or a part of
one, later. Here that is a `DamagedError`; a storage that does not answer and a checkpoint of
another run are other errors.

`CheckpointManager.restore` ends in a barrier of all hosts, so a host that finds damage would leave
the others waiting there. Its restore of the data iterator also needs the number of processes that
saved it.
"""

import contextlib
import functools
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath

from pea_jax.runtime import processes, storage
from pea_jax.runtime.storage import AnyPath, StorageError

CHECKPOINTS = "checkpoints"
#: Damaged checkpoints are moved here, so that their steps can be saved again. Not under
#: CHECKPOINTS: Orbax deletes unfinished ones there.
DAMAGED = "damaged"

Tree = Any
T = TypeVar("T")

#: Raised by Orbax, tensorstore and JSON for files that are missing, cut or overwritten.
_DAMAGE_ERRORS = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
)

_WHOLE, _IS_DAMAGED, _FAILED = range(3)


class DamagedError(ValueError):
    """A checkpoint is not whole."""


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint is not whole; an earlier one is used."""


def steps(workdir: AnyPath) -> list[int]:
    """The steps of the finished checkpoints of a workdir, in rising order."""
    folder = workdir / CHECKPOINTS
    found = [name for name in storage.held(folder) if name.isdigit()]
    return sorted(int(name) for name in found if _finished(folder / name))


def folder_of(workdir: AnyPath, step: int) -> AnyPath:
    """The folder of the checkpoint of a step."""
    return workdir / CHECKPOINTS / f"{step:08d}"


def latest_whole(
    workdir: AnyPath, steps: Sequence[int], read: Callable[[AnyPath], T]
) -> tuple[int, T, list[int]]:
    """The latest checkpoint that every process can read; later ones raise a warning.

    All processes call this together and get the same answer.

    Args:
      workdir: of the run.
      steps: to choose from, in rising order; all processes use those of the first one.
      read: (folder of a checkpoint) -> its content.

    Returns:
      The step, the result of `read`, and the damaged steps.

    Raises:
      DamagedError: none is whole; names the damage of each.
      StorageError: the storage does not answer, here or on another process.
    """
    reasons: dict[int, str] = {}
    for step in reversed(processes.of_first(steps)):
        folder, value, outcome, failure = folder_of(workdir, step), None, _WHOLE, None
        try:
            value = read(folder)
        except Exception as error:
            failure = error
            outcome = _IS_DAMAGED if isinstance(error, DamagedError) else _FAILED
        outcomes = processes.gather(outcome)
        if outcome == _FAILED:
            raise failure
        elsewhere = f"process {outcomes.index(max(outcomes))} cannot read it"
        if _FAILED in outcomes:
            raise StorageError(f"{folder}: {elsewhere}")
        if _IS_DAMAGED not in outcomes:
            for bad, reason in reasons.items():
                warnings.warn(
                    f"{folder_of(workdir, bad)} is damaged ({reason}): going on from step {step}",
                    DamagedCheckpointWarning,
                    1,
                )
            return step, value, list(reasons)
        reasons[step] = str(failure or elsewhere)
    listed = "; ".join(f"step {step}: {reason}" for step, reason in reasons.items())
    raise DamagedError(f"{workdir / CHECKPOINTS}: no checkpoint is whole ({listed})")


def set_aside(workdir: AnyPath, steps: Sequence[int]) -> None:
    """Move damaged checkpoints to DAMAGED; nothing is deleted.

    All processes call this together; the first one moves.
    """
    if processes.process_index() == 0:
        for step in steps:
            target, count = workdir / DAMAGED / f"{step:08d}", 1
            while target.exists():
                count += 1
                target = workdir / DAMAGED / f"{step:08d}.{count}"
            storage.move(folder_of(workdir, step), target)
    processes.gather(0)  # the others wait


def read_items(folder: AnyPath) -> set[str]:
    """The names of the items of a checkpoint.

    Raises:
      DamagedError: they are unknown, or one is missing.
    """
    with _damage(folder.name):
        if not _finished(folder):
            raise DamagedError("it was not finished")
        metadata = json.loads((folder / "_CHECKPOINT_METADATA").read_text())
        items = set(metadata["item_handlers"])
        missing = sorted(item for item in items if not _finished(folder / item))
        if missing or not items:
            raise DamagedError(f"without {', '.join(missing) or 'items'}")
    return items


def read_meta(folder: AnyPath) -> dict[str, Any]:
    """The item `meta`.

    Raises:
      DamagedError: it cannot be read.
    """
    with _damage("meta"):
        meta = json.loads((folder / "meta" / "metadata").read_text())
        if not {"step", "seed", "adapter"} <= set(meta):
            raise DamagedError("meta: expected step, seed and adapter")
    return meta


def read_data_states(folder: AnyPath) -> list[dict[str, Any]]:
    """The states of the data iterator, one of each process that saved.

    Raises:
      DamagedError: one is missing or cannot be read.
    """
    with _damage("data"):
        names = storage.held(folder / "data")
        found = {name for name in names if name.endswith(".json")}
        expected = [f"process_{i}-of-{len(found)}.json" for i in range(len(found))]
        if not found or found != set(expected):
            raise DamagedError(f"data: not the states of all processes of a run, but {names}")
        return [json.loads((folder / "data" / name).read_text("utf-8")) for name in expected]


def read_tree(folder: AnyPath, item: str, like: Tree) -> Tree:
    """An item of arrays, with the structure and shardings of `like`.

    Raises:
      DamagedError: it cannot be read.
      ValueError: it has another structure or other shapes.
    """
    _ignore_late_reads()
    packed = pack(like)
    place = epath.Path(folder.absolute() if not storage.is_bucket(folder) else folder) / item
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        with _damage(item):
            found = {key: leaf.shape for key, leaf in handler.metadata(place).tree.items()}
        wanted = {key: leaf.shape for key, leaf in packed.items()}
        if found != wanted:
            differing = sorted(
                f"{key}: {wanted.get(key, 'none')} here, {found.get(key, 'none')} there"
                for key in wanted.keys() | found.keys()
                if wanted.get(key) != found.get(key)
            )
            raise ValueError(f"{place} is of another form ({'; '.join(differing)})")
        form = jax.tree.map(ocp.utils.to_shape_dtype_struct, packed)
        arguments = ocp.checkpoint_utils.construct_restore_args(form)
        with _damage(item):
            values = handler.restore(
                place, args=ocp.args.PyTreeRestore(form, restore_args=arguments)
            )
            return jax.tree.unflatten(jax.tree.structure(like), [values[key] for key in packed])


def pack(tree: Tree) -> dict[str, Any]:
    """The leaves by their paths, so that the stored form does not depend on container classes."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def merge_states(iterator: Iterator[Any], states: Sequence[Mapping[str, Any]]) -> Any:
    """One state of `iterator` from those of all processes.

    Raises:
      DamagedError: they contradict each other.
    """
    with _damage("data"):
        if hasattr(iterator, "merge_states"):
            return iterator.merge_states(states)
        if any(state != states[0] for state in states):
            raise DamagedError("data: the states of the processes differ")
        return states[0]


@functools.cache
def _ignore_late_reads() -> None:
    """Silence reads of a damaged item that end after the first failing one.

    The first failure closes Orbax's event loop. Each later read would print the traceback of an
    error that nothing can catch, or a warning where it had not begun.
    """
    warnings.filterwarnings("ignore", "coroutine '_read.*' was never awaited", RuntimeWarning)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        closed = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        cut_off = error is not None and isinstance(error.__cause__, GeneratorExit)
        if not closed and not cut_off:
            before(unraisable)

    sys.unraisablehook = hook


def _finished(folder: AnyPath) -> bool:
    """Whether Orbax finished writing a step or an item."""
    if not storage.is_bucket(folder):
        return folder.is_dir()  # renamed once whole
    return (folder / "commit_success.txt").exists()


@contextlib.contextmanager
def _damage(name: str) -> Iterator[None]:
    """Turn errors of damaged files into `DamagedError`; those of a failing storage pass through."""
    try:
        with storage.faults():
            try:
                yield
            except Exception as error:
                # Orbax wraps errors of tensorstore about an array in a plain Exception.
                if type(error) is not Exception or not isinstance(error.__cause__, Exception):
                    raise
                raise error.__cause__ from None
    except DamagedError:
        raise
    except _DAMAGE_ERRORS as error:
        lines = str(error).strip().splitlines()
        reason = lines[0][:200] if lines else type(error).__name__
        raise DamagedError(f"{name}: {reason}") from error
