"""The two parts of a batch, native and parallel, and their order in the student's batch.

Each part is split over the data shards separately. For every shard, the student's batch holds that
shard's native rows and then its parallel rows:

    [ n_0 p_0 | n_1 p_1 | ... ]    and not    [ n_0 n_1 ... | p_0 p_1 ... ]

so joining the parts, and taking one out again, moves no row between devices.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

NATIVE = "native"
PARALLEL = "parallel"

#: The parts in their order within a shard. The position is also folded into a part's random key.
PARTS = (NATIVE, PARALLEL)

#: The two forms of an image in a batch: its pixels, or the moments of its latents.
PIXELS, MOMENTS = "pixels", "moments"

#: Fields of a part's rows beside the image.
_STUDENT = frozenset({"time_ids", "ids", "mask", "language"})
_FIELDS = {NATIVE: _STUDENT, PARALLEL: _STUDENT | {"english_ids", "english_mask"}}

#: Fields of the empty prompt, each [1, L].
EMPTY_FIELDS = ("ids", "mask", "english_ids", "english_mask")

#: Fields of rows, as numpy arrays on the host, traced in the step, or shapes to lower it with.
Fields = Mapping[str, Shaped[Array | np.ndarray | jax.ShapeDtypeStruct, "_ ..."]]

Tree = TypeVar("Tree")


def fields(part: str, picture: str = PIXELS) -> frozenset[str]:
    """The fields of a part's rows; `picture` is `PIXELS` or `MOMENTS`."""
    return _FIELDS[part] | {picture}


def check_rows(rows: Mapping[str, int], data_shards: int, slices: int = 1) -> None:
    """Raises ValueError unless every part can be split evenly over the data shards.

    Args:
        rows: of each part of the global batch; a part of no rows is absent or 0.
        data_shards: devices that the batch is split over.
        slices: of each device's rows, one after another (`parallel.cut`).
    """
    pieces = data_shards * slices
    uneven = [f"{name} has {count} rows" for name, count in rows.items() if count % pieces]
    if uneven:
        times = f" and, on each, over {slices} slices" if slices > 1 else ""
        raise ValueError(
            f"batch: every part must split evenly over the {data_shards} data shards of the mesh"
            f"{times}, but {' and '.join(uneven)}; use multiples of {pieces}"
        )


def count_rows(
    batch: Mapping[str, Fields],
    empty: Fields,
    *,
    hybrid: bool,
    data_shards: int,
    slices: int = 1,
    picture: str = PIXELS,
) -> dict[str, int]:
    """Checks a batch and counts the rows of each part.

    Args:
        batch: part -> field -> [b, ...]; a part without rows is absent.
        empty: the token ids and masks of the empty prompt, see `EMPTY_FIELDS`.
        hybrid: whether native rows are allowed.
        data_shards: devices that the batch is split over.
        slices: number of slices of each device's rows.
        picture: `PIXELS` or `MOMENTS`.

    Raises:
        ValueError: names every problem of the batch.
    """
    problems = [f"empty prompt: no {name}" for name in EMPTY_FIELDS if name not in empty]
    if not batch:
        problems.append(f"no part: expected one of {PARTS} or both")
    rows = {}
    for name, part in batch.items():
        if name not in PARTS:
            problems.append(f"part {name!r}: expected one of {PARTS}")
            continue
        if set(part) != fields(name, picture):
            expected = sorted(fields(name, picture))
            problems.append(f"{name}: expected the fields {expected}, got {sorted(part)}")
            continue
        counts = {field: array.shape[0] for field, array in part.items()}
        if len(set(counts.values())) > 1 or not counts[picture]:
            problems.append(f"{name}: expected one positive number of rows, got {counts}")
        rows[name] = counts[picture]
        problems += [
            f"{name}: {field} has {part[field].shape[1]} tokens a row, "
            f"the empty prompt {empty[field].shape[1]}"
            for field in EMPTY_FIELDS
            if field in part and field in empty and part[field].shape[1] != empty[field].shape[1]
        ]
    if NATIVE in rows and not hybrid:
        problems.append(
            f"native: {rows[NATIVE]} rows, but without hybrid training every row needs an English "
            "caption"
        )
    if problems:
        raise ValueError("batch: " + "; ".join(problems))
    check_rows(rows, data_shards, slices)
    return {name: rows[name] for name in PARTS if name in rows}


@dataclasses.dataclass(frozen=True)
class BatchLayout:
    """The order of the parts in the student's batch.

    Attributes:
        rows: number of rows of each part, in the order of `PARTS`.
        data_shards: devices that each part is split over.
    """

    rows: Mapping[str, int]
    data_shards: int = 1

    def join(self, parts: Sequence[Tree]) -> Tree:
        """One tree of arrays [B, ...] from the parts' trees of arrays [b, ...]."""
        return parts[0] if len(parts) == 1 else jax.tree.map(self._join_arrays, *parts)

    def take(self, joined: Tree, name: str) -> Tree:
        """The part `name` of a joined tree."""
        if list(self.rows) == [name]:
            return joined
        names = list(self.rows)
        before = sum(self.rows[other] for other in names[: names.index(name)])
        start, stop = (row // self.data_shards for row in (before, before + self.rows[name]))

        def take_array(array: Shaped[Array, "B ..."]) -> Shaped[Array, "b ..."]:
            return self._by_shard(array)[:, start:stop].reshape(-1, *array.shape[1:])

        return jax.tree.map(take_array, joined)

    def _join_arrays(self, *arrays: Shaped[Array | np.ndarray, "_ ..."]) -> Shaped[Array, "B ..."]:
        joined = jnp.concatenate([self._by_shard(array) for array in arrays], axis=1)
        return joined.reshape(-1, *joined.shape[2:])

    def _by_shard(self, array: Shaped[Array | np.ndarray, "b ..."]) -> Shaped[Array, "D _ ..."]:
        return jnp.asarray(array).reshape(self.data_shards, -1, *array.shape[1:])
