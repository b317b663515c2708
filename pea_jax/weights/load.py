"""Loads weight files into a Flax module, driven by the module and not by the file.

The abstract module defines the parameters and their shapes; every tensor that is missing, extra,
duplicate or misshapen is reported in one error. Each parameter is then read directly into its
placed array, one device's part at a time, so a host never holds more than its own share of the
model and one more part. The files are safetensors; torch pickles are read through the same
interface, see `pickles`.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Sharding
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from pea_jax.weights import names
from pea_jax.weights.errors import WeightsError
from pea_jax.weights.pickles import is_pickle, open_pickle

_FLOATS = ("F64", "F32", "F16", "BF16")

#: (key in the checkpoint, the module's shape) -> placement of that parameter.
Placement = Callable[[str, tuple[int, ...]], Sharding | None]


@dataclass(frozen=True)
class _Tensor:
    """The header of a tensor in a file, or of the rows of it that form one parameter.

    Attributes:
      file: its file.
      key: its key there.
      name: of the parameter; differs from `key` where the tensor holds several.
      shape: of the parameter's rows.
      dtype: by safetensors' name.
      first: the first of the rows.
    """

    file: Path
    key: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    first: int = 0


@dataclass(frozen=True)
class _Parameter:
    """A parameter of the abstract module, with the shape that it has there."""

    path: names.ParameterPath
    shape: tuple[int, ...]
    dtype: Any


def load_module(
    build: Callable[[], nnx.Module],
    files: Path | str | Sequence[Path | str],
    *,
    dtype: DTypeLike | None = None,
    sharding: Placement | None = None,
    aliases: names.Aliases = names.ALIASES,
    ignore: Sequence[str] = (),
    stacks: names.Stacks = (),
) -> nnx.Module:
    """The module that `build` returns, with the parameters of `files`.

    Args:
      build: returns the module; traced only, so nothing is initialised.
      files: one safetensors file or torch pickle, or all shards of a checkpoint.
      dtype: of the loaded floating-point parameters; None uses the module's own (`param_dtype`).
      sharding: (key in the checkpoint, the module's shape) -> placement of that parameter. None, or
        a returned None, leaves it uncommitted on the default device.
      aliases: other names of the same tensors, see `names.ALIASES`.
      ignore: patterns of whole keys in the file that the module may lack, besides `names.IGNORED`.
        An ignored key that is another name of a parameter is still read if the file has no other
        key for it. A missing parameter is always an error.
      stacks: tensors that hold several parameters, see `names.unstacked`.

    Raises:
      WeightsError: a file that is missing or incomplete, in one line; or every tensor that is
        missing, extra, duplicate, misshapen or not of a floating-point type, one line each.
    """
    files = [Path(files)] if isinstance(files, str | Path) else [Path(file) for file in files]
    graph, state = nnx.split(nnx.eval_shape(build))
    flat = nnx.to_flat_state(state)
    parameters = _parameters(flat, aliases)
    with ExitStack() as stack:
        handles = {file: stack.enter_context(_open(file)) for file in files}
        tensors = [tensor for file in files for tensor in _catalogue(file, handles[file], stacks)]
        pairs = _match(parameters, tensors, files, aliases, (*names.IGNORED, *ignore))
        arrays = {
            parameter.path: _place(parameter, tensor, handles[tensor.file], dtype, sharding)
            for parameter, tensor in pairs
        }
    loaded = [(path, variable.replace(arrays[path])) for path, variable in flat]
    return nnx.merge(graph, nnx.from_flat_state(loaded))


def abstract_module(
    build: Callable[[], nnx.Module],
    *,
    sharding: Placement | None = None,
) -> nnx.Module:
    """The result of `load_module` with shapes in place of arrays (`jax.ShapeDtypeStruct`).

    Args:
      build: as for `load_module`.
      sharding: likewise.
    """

    def shape_of(path: names.ParameterPath, variable: nnx.Variable) -> jax.ShapeDtypeStruct:
        shape = tuple(variable.shape)
        where = sharding(names.key_of(path), shape) if sharding else None
        return jax.ShapeDtypeStruct(shape, variable.dtype, sharding=where)

    graph, state = nnx.split(nnx.eval_shape(build))
    flat = nnx.to_flat_state(state)
    shapes = [(path, variable.replace(shape_of(path, variable))) for path, variable in flat]
    return nnx.merge(graph, nnx.from_flat_state(shapes))


def read_header(file: Path) -> dict[str, tuple[int, ...]]:
    """Every key of a weight file with its shape, without reading a tensor."""
    with _open(Path(file)) as handle:
        return {tensor.key: tensor.shape for tensor in _catalogue(Path(file), handle)}


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """Every tensor of a weight file under its key, in its layout and type.

    Raises:
      WeightsError: in one line, a file that is missing or incomplete.
    """
    with _open(Path(file)) as handle:
        try:
            return {key: handle.get_slice(key)[...] for key in handle.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{file}: cannot read its tensors ({error})") from error


def _open(file: Path) -> Any:
    """A handle of either format, recognised by the file's first bytes and not by its name."""
    if is_pickle(file):
        return open_pickle(file)
    try:
        return safe_open(str(file), framework="np")
    except FileNotFoundError:
        raise WeightsError(f"{file}: no such weights file") from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{file} ({file.stat().st_size} bytes): not a whole safetensors file ({error})"
            + (", but a git-lfs pointer" if _is_pointer(file) else "")
        ) from error


def _is_pointer(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(24) == b"version https://git-lfs."


def _catalogue(file: Path, handle: Any, stacks: names.Stacks = ()) -> Iterator[_Tensor]:
    for key in handle.keys():  # noqa: SIM118  (not a dict)
        part = handle.get_slice(key)
        shape, dtype = tuple(part.get_shape()), part.get_dtype()
        found = names.unstacked(key, stacks)
        if len(found) > 1 and (not shape or shape[0] % len(found)):
            raise WeightsError(
                f"{file}: {key} {list(shape)} cannot be {len(found)} parameters, "
                f"{', '.join(found)}, of as many rows each"
            )
        if len(found) > 1:
            shape = shape[0] // len(found), *shape[1:]
        for index, name in enumerate(found):
            yield _Tensor(file, key, name, shape, dtype, first=index * shape[0] if index else 0)


def _parameters(
    flat: Iterable[tuple[names.ParameterPath, nnx.Variable]], aliases: names.Aliases
) -> dict[str, _Parameter]:
    """The module's parameters by their canonical key."""
    foreign = [names.key_of(path) for path, variable in flat if not isinstance(variable, nnx.Param)]
    if foreign:
        raise WeightsError(f"only nnx.Param can be loaded; the module also holds {foreign}")
    found: dict[str, _Parameter] = {}
    for path, variable in flat:
        key = names.canonical(names.key_of(path), aliases)
        if key in found:
            raise WeightsError(f"the module has {key} twice: at {found[key].path} and at {path}")
        found[key] = _Parameter(path, tuple(variable.shape), variable.dtype)
    return found


def _match(
    parameters: dict[str, _Parameter],
    tensors: Sequence[_Tensor],
    files: Sequence[Path],
    aliases: names.Aliases,
    ignore: Sequence[str],
) -> list[tuple[_Parameter, _Tensor]]:
    """One tensor for each parameter; raises with every misfit otherwise."""
    excused = [re.compile(pattern) for pattern in ignore]

    def is_excused(tensor: _Tensor) -> bool:
        return any(pattern.fullmatch(tensor.key) for pattern in excused)

    candidates: dict[str, list[_Tensor]] = defaultdict(list)
    problems = []
    for tensor in tensors:
        key = names.canonical(tensor.name, aliases)
        if key in parameters:
            candidates[key].append(tensor)
        elif not is_excused(tensor):
            problems.append(
                f"extra: {tensor.key} {list(tensor.shape)} in {tensor.file}, unknown to the module"
            )
    pairs = []
    for key, parameter in parameters.items():
        name = names.key_of(parameter.path)
        expected = names.file_shape(parameter.path, parameter.shape)
        found = candidates[key]
        if len(found) > 1:  # the copies of tied tensors are ignored
            found = [tensor for tensor in found if not is_excused(tensor)] or found
        if not found:
            problems.append(f"missing: {name}, expected {list(expected)}")
        elif len(found) > 1:
            where = " and ".join(f"{t.key} {list(t.shape)} in {t.file}" for t in found)
            problems.append(f"duplicate: {name}, expected once {list(expected)}, got {where}")
        elif not _fits(key, found[0].shape, expected):
            problems.append(
                f"misshapen: {name}, expected {list(expected)}, got {list(found[0].shape)} "
                f"({found[0].key} in {found[0].file})"
            )
        elif found[0].dtype not in _FLOATS:
            problems.append(
                f"type: {name}, expected one of {', '.join(_FLOATS)}, got {found[0].dtype} "
                f"({found[0].key} in {found[0].file})"
            )
        else:
            pairs.append((parameter, found[0]))
    if problems:
        where = ", ".join(str(file) for file in files)
        lines = "\n  ".join(problems)
        raise WeightsError(f"{len(problems)} tensors of {where} do not fit the module:\n  {lines}")
    return pairs


def _fits(key: str, got: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return got == expected or names.is_unit_convolution(key, got, expected)


def _place(
    parameter: _Parameter,
    tensor: _Tensor,
    handle: Any,
    dtype: DTypeLike | None,
    sharding: Placement | None,
) -> jax.Array:
    target = np.dtype(parameter.dtype if dtype is None else dtype)
    part = handle.get_slice(tensor.key)
    # Replicated parts are read once.
    parts: dict[tuple[Any, ...], np.ndarray] = {}

    def read(index: tuple[slice, ...]) -> np.ndarray:
        bounds = tuple(
            axis.indices(size) for axis, size in zip(index, parameter.shape, strict=True)
        )
        if bounds not in parts:
            parts[bounds] = _read(parameter, tensor, part, index, target)
        return parts[bounds]

    where = sharding(names.key_of(parameter.path), parameter.shape) if sharding else None
    if where is None:
        return jax.device_put(read((slice(None),) * len(parameter.shape)))
    return jax.make_array_from_callback(parameter.shape, where, read)


def _rows(tensor: _Tensor, index: tuple[slice, ...]) -> tuple[slice, ...]:
    """The index into a tensor, from an index into one of the parameters that it holds."""
    if tensor.name == tensor.key:
        return index
    start, stop, _ = index[0].indices(tensor.shape[0])
    return slice(tensor.first + start, tensor.first + stop), *index[1:]


def _read(
    parameter: _Parameter, tensor: _Tensor, part: Any, index: tuple[slice, ...], target: np.dtype
) -> np.ndarray:
    """Reads `parameter[index]` and no other part of the file."""
    rank = len(parameter.shape)
    unit = (slice(None),) * (len(tensor.shape) - rank)  # axes of a 1x1 convolution
    try:
        values = part[(*_rows(tensor, names.file_index(parameter.path, index)), *unit)]
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{tensor.file}: cannot read {tensor.key} ({error})") from error
    values = values.reshape(values.shape[:rank]).transpose(names.axes_of(parameter.path, rank))
    try:
        with np.errstate(over="raise"):
            return np.asarray(values, dtype=target, order="C")
    except FloatingPointError:
        raise WeightsError(
            f"{tensor.file}: {tensor.key} ({tensor.dtype}) has values beyond the range of {target}"
        ) from None
