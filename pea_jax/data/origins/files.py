"""File patterns with {00000..00099}, {a,b}, * and folders, on disks and in buckets."""

import fnmatch
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pea_jax.runtime import storage
from pea_jax.runtime.storage import AnyPath

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAGIC = re.compile(r"[*?\[]")

#: Folder -> sizes of its files by name, None for a subfolder; `storage.sizes`, cached.
_Sizes = Callable[[AnyPath], dict[str, int | None]]


@dataclass(frozen=True)
class File:
    """A file to read.

    Attributes:
      path: local, or in a bucket.
      label: path below the common folder of the split's files, without the ending. It does not
        change when that folder moves.
      size: in bytes.
    """

    path: str = field(repr=False)
    label: str
    size: int


def expand(pattern: str) -> list[str]:
    """Expands the braces {00000..00099} and {a,b} of a pattern, in order.

    Raises:
      ValueError: other braces, or an empty range.
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    inside = match[1]
    if numbers := _RANGE.fullmatch(inside):
        first, last = numbers.groups()
        width = len(first) if first.startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    else:
        choices = inside.split(",") if "," in inside else []
    if not choices:
        raise ValueError(f"{pattern}: expected {{FIRST..LAST}} or {{A,B}}, got {{{inside}}}")
    rest = expand(pattern[match.end() :])
    return [pattern[: match.start()] + choice + end for choice in choices for end in rest]


def find(where: Sequence[str], endings: Sequence[str]) -> list[File]:
    """The files of one split, in the order of `where`. Matches of one pattern or folder are sorted.

    Args:
      where: files, with braces and with *, ? and [] in any part of the path; or folders, for all
        files in them with one of the endings.
      endings: such as ".tar".

    Raises:
      ValueError: a name has no match, or a file is named twice.
      StorageError: a bucket is unreachable.
    """
    sizes = functools.cache(storage.sizes)
    found: list[tuple[str, int]] = []
    missing = []
    for name in where:
        for pattern in expand(name):
            matches = list(_matches(pattern, endings, sizes))
            found += matches
            if not matches:
                missing.append(pattern)
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" * (len(missing) > 5))
        raise ValueError(f"no file ({', '.join('*' + each for each in endings)}) at: {shown}")
    paths = [path for path, _ in found]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"{twice} is named more than once")
    labels = _labels(paths, endings)
    return [File(path, label, size) for (path, size), label in zip(found, labels, strict=True)]


def _matches(pattern: str, endings: Sequence[str], sizes: _Sizes) -> Iterator[tuple[str, int]]:
    """Path and size of each match of a pattern without braces."""
    scheme, _, rest = pattern.rpartition("://")
    parts = PurePosixPath(rest).parts
    fixed = list(itertools.takewhile(lambda part: not _MAGIC.search(part), parts))
    if len(fixed) == len(parts):
        # Many names of a split share a folder, which is listed once.
        fixed = fixed[:-1]
    top = str(PurePosixPath(*fixed))
    top = f"{scheme}://{top}" if scheme else top
    yield from _walk(storage.as_path(top), parts[len(fixed) :], endings, sizes)


def _walk(
    folder: AnyPath, parts: Sequence[str], endings: Sequence[str], sizes: _Sizes
) -> Iterator[tuple[str, int]]:
    listing = sizes(folder)
    first, rest = (parts[0], parts[1:]) if parts else ("*", ())
    exact = not _MAGIC.search(first)
    names = [first] * (first in listing) if exact else sorted(fnmatch.filter(listing, first))
    for name in names:
        size = listing[name]
        if rest:
            if size is None:
                yield from _walk(folder / name, rest, endings, sizes)
        elif size is not None:
            if name.endswith(tuple(endings)):
                yield str(folder / name), size
        elif exact:
            yield from _walk(folder / name, (), endings, sizes)


def _labels(paths: Sequence[str], endings: Sequence[str]) -> list[str]:
    """Paths below their common folder, without endings unless two labels would then be equal."""
    split = [path.split("/") for path in paths]
    levels = zip(*(each[:-1] for each in split), strict=False)
    common = len(list(itertools.takewhile(lambda names: len(set(names)) == 1, levels)))
    whole = ["/".join(each[common:]) for each in split]
    longest = sorted(endings, key=len, reverse=True)
    bare = [
        next((name.removesuffix(end) for end in longest if name.endswith(end)), name)
        for name in whole
    ]
    return bare if len(set(bare)) == len(bare) else whole
