"""One saved checkpoint: what lies in its folder, read and checked by each process for itself.

Orbax tells a checkpoint that was never finished, by its name or a missing commit file; it does not
tell one that lost a file or a part of one later. Here that is a `DamagedError`, apart from a
storage that does not answer and from a checkpoint of another run, which are no damage.
"""

import contextlib
import functools
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath

from pea_jax.runtime import parallel, storage
from pea_jax.runtime.storage import AnyPath, StorageError

CHECKPOINTS = "checkpoints"
#: Where a damaged checkpoint is moved to when its step is to be saved again. Not under CHECKPOINTS:
#: what is unfinished there is deleted by Orbax.
DAMAGED = "damaged"

Tree = Any
T = TypeVar("T")

#: What Orbax, tensorstore and JSON raise at files that are missing, cut, or not what they were.
_SIGNS = (
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
    """A checkpoint that is not whole."""


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint is not whole; the one before is taken."""


def steps(workdir: AnyPath) -> list[int]:
    """The steps of the finished checkpoints of a workdir, in rising order."""
    folder = workdir / CHECKPOINTS
    found = [name for name in storage.held(folder) if name.isdigit()]
    return sorted(int(name) for name in found if _finished(folder / name))


def folder_of(workdir: AnyPath, step: int) -> AnyPath:
    """Where the checkpoint of a step lies."""
    return workdir / CHECKPOINTS / f"{step:08d}"


def latest_whole(
    workdir: AnyPath, steps: Sequence[int], read: Callable[[AnyPath], T]
) -> tuple[int, T, list[int]]:
    """The latest checkpoint that every process can read; later ones are warned of.

    All processes call this together and come to the same answer.

    Args:
      workdir: of the run.
      steps: to choose from, in rising order; those of the first process count.
      read: (folder of a checkpoint) -> what it holds.

    Returns:
      The step, what `read` gave, and the steps that are damaged.

    Raises:
      DamagedError: none of them is whole; it names each with its damage.
      StorageError: the storage does not answer, here or on another process.
    """
    reasons: dict[int, str] = {}
    for step in reversed(parallel.of_first(steps)):
        folder, value, failure = folder_of(workdir, step), None, None
        try:
            value = read(folder)
        except Exception as error:
            failure = error
        damaged = isinstance(failure, DamagedError)
        outcome = _WHOLE if failure is None else _IS_DAMAGED if damaged else _FAILED
        outcomes = parallel.gather(outcome)
        if failure is not None and not damaged:
            raise failure
        if _FAILED in outcomes:
            raise StorageError(f"{folder}: process {outcomes.index(_FAILED)} cannot read it")
        if _IS_DAMAGED not in outcomes:
            for bad, reason in reasons.items():
                warnings.warn(
                    f"{folder_of(workdir, bad)} is damaged ({reason}): going on from step {step}",
                    DamagedCheckpointWarning,
                    1,
                )
            return step, value, list(reasons)
        by = f"process {outcomes.index(_IS_DAMAGED)} cannot read it"
        reasons[step] = str(failure) if damaged else by
    told = "; ".join(f"step {step}: {reason}" for step, reason in reasons.items())
    raise DamagedError(f"{workdir / CHECKPOINTS}: no checkpoint is whole ({told})")


def set_aside(workdir: AnyPath, steps: Sequence[int]) -> None:
    """Move damaged checkpoints out of the way of the steps that will be saved again.

    Nothing is deleted: what is damaged may be all that there is of a step. All processes call this
    together; the first one moves.
    """
    if steps and parallel.process_index() == 0:
        for step in steps:
            target, count = workdir / DAMAGED / f"{step:08d}", 1
            while target.exists():
                count += 1
                target = workdir / DAMAGED / f"{step:08d}.{count}"
            storage.move(folder_of(workdir, step), target)
    parallel.gather(0)  # the others wait for it


def read_items(folder: AnyPath) -> set[str]:
    """The names of the items that a checkpoint was saved with.

    Raises:
      DamagedError: it is not known, or one is missing.
    """
    with _damage(folder):
        if not _finished(folder):
            raise DamagedError("it was not finished")
        metadata = json.loads((folder / "_CHECKPOINT_METADATA").read_text())
        items = set(metadata["item_handlers"])
        missing = sorted(item for item in items if not (folder / item).is_dir())
        if missing or not items:
            raise DamagedError(f"without {', '.join(missing) or 'items'}")
        unfinished = sorted(item for item in items if not _finished(folder / item))
        if unfinished:
            raise DamagedError(f"{', '.join(unfinished)} not finished")
    return items


def read_meta(folder: AnyPath) -> dict[str, Any]:
    """The item `meta`.

    Raises:
      DamagedError: it cannot be read.
    """
    with _damage(folder / "meta"):
        meta = json.loads((folder / "meta" / "metadata").read_text())
        if not {"step", "seed", "adapter"} <= set(meta):
            raise DamagedError("meta: expected step, seed and adapter")
    return meta


def read_data_states(folder: AnyPath) -> list[dict[str, Any]]:
    """The states of the data iterator, of as many processes as there were.

    Raises:
      DamagedError: one is missing or cannot be read.
    """
    with _damage(folder / "data"):
        names = storage.held(folder / "data")
        found = [re.fullmatch(r"process_(\d+)-of-(\d+)\.json", name) for name in names]
        numbers = sorted((int(one[1]), int(one[2])) for one in found if one)
        expected = [(i, len(numbers)) for i in range(len(numbers))]
        if not numbers or numbers != expected:
            raise DamagedError(f"data: not the states of all processes of a run, but {names}")
        texts = [
            (folder / "data" / f"process_{i}-of-{n}.json").read_text("utf-8") for i, n in numbers
        ]
        return [json.loads(text) for text in texts]


def read_tree(folder: AnyPath, item: str, like: Tree) -> Tree:
    """An item of arrays, in the form and on the devices of `like`.

    Raises:
      DamagedError: it cannot be read.
      ValueError: it was saved of another form.
    """
    _ignore_late_reads()
    packed = pack(like)
    place = epath.Path(folder.absolute() if not storage.is_bucket(folder) else folder) / item
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        with _damage(place):
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
        with _damage(place):
            values = handler.restore(
                place, args=ocp.args.PyTreeRestore(form, restore_args=arguments)
            )
            return jax.tree.unflatten(jax.tree.structure(like), [values[key] for key in packed])


def pack(tree: Tree) -> dict[str, Any]:
    """The leaves by their paths: what is stored does not depend on the classes on the way."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def merge_states(iterator: Iterator[Any], states: Sequence[Mapping[str, Any]]) -> Any:
    """One state of `iterator` from those of all processes.

    Raises:
      DamagedError: they contradict each other.
    """
    with _damage(None):
        if hasattr(iterator, "merge_states"):
            return iterator.merge_states(states)
        if any(state != states[0] for state in states):
            raise DamagedError("data: the states of the processes differ")
        return states[0]


@functools.cache
def _ignore_late_reads() -> None:
    """The first read of a damaged item that fails ends Orbax's event loop; the others come later.

    Each would be told with a traceback, of an error that nobody can catch; and reads that had not
    begun, with a warning.
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
    """Whether Orbax finished writing a step or an item; a kill in between leaves it unfinished."""
    if not storage.is_bucket(folder):
        return folder.is_dir()  # renamed when it was whole
    return (folder / "commit_success.txt").exists()


@contextlib.contextmanager
def _damage(place: AnyPath | None) -> Iterator[None]:
    """Tell damage from a storage that does not answer."""
    try:
        with storage.faults():
            try:
                yield
            except Exception as error:
                # Orbax wraps what tensorstore says of an array in an Exception of no kind.
                if type(error) is not Exception or not isinstance(error.__cause__, Exception):
                    raise
                raise error.__cause__ from None
    except DamagedError:
        raise
    except _SIGNS as error:
        told = str(error).strip().splitlines()
        reason = told[0][:200] if told else type(error).__name__
        where = f"{place.name}: " if place is not None else ""
        raise DamagedError(f"{where}{reason}") from error
