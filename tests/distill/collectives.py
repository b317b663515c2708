"""What a compiled program sends between devices, read from its text."""

import re
from collections.abc import Iterable

_OPERATIONS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
_LINE = re.compile(rf"= (.*?) ({'|'.join(_OPERATIONS)})(?:-start)?\(")
_SHAPE = re.compile(r"\w+\[([\d,]*)\]")

Shape = tuple[int, ...]


def canonical(shape: Iterable[int]) -> Shape:
    """A shape up to transposition and axes of one, which a compiler adds as it likes."""
    return tuple(sorted(size for size in shape if size != 1))


def collectives(text: str) -> dict[str, set[Shape]]:
    """Operation -> the canonical shapes that it gives, for all that are in an HLO text."""
    found: dict[str, set[Shape]] = {}
    for line in text.splitlines():
        if match := _LINE.search(line):
            shapes = _SHAPE.findall(match[1])
            found.setdefault(match[2], set()).update(
                canonical(int(size) for size in shape.split(",") if size) for shape in shapes
            )
    return found
