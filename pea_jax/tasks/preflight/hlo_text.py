"""The text of an optimised HLO program (`compiled.as_text()`), parsed into instructions."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

_BITS = {"pred": 8, "bf16": 16, "token": 0, "s4": 4, "u4": 4}
_ARRAY = re.compile(r"\b(pred|token|bf16|[suf]\d+(?:e\dm\d\w*)?|c64|c128)\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = ")
_OPCODE = re.compile(r" ([a-z][\w\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%[\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: unique in its computation.
      shape: of the result, in HLO's notation.
      opcode: "fusion", "convolution", ...
      operands: their shapes.
      text: the whole line.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    text: str

    def called(self) -> dict[str, list[str]]:
        """The names of the computations that it calls, by attribute."""
        return {kind: _NAME.findall(names) for kind, names in _CALLED.findall(self.text)}


Computation = Sequence[Instruction]


def parse(text: str) -> tuple[str, dict[str, Computation]]:
    """The entry's name, and the instructions of every computation by its name.

    Raises:
      ValueError: there is no entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, inside = "", None
    for line in text.splitlines():
        if inside is None:
            if found := _HEAD.match(line):
                inside, shapes = computations.setdefault(found[2], []), {}
                entry = found[2] if found[1] else entry
        elif line == "}" or line.startswith("}, execution_thread"):
            inside = None  # attributes of a kernel may begin a line with }} too
        elif instruction := _instruction(line, shapes):
            inside.append(instruction)
            shapes[instruction.name] = instruction.shape
    if not entry:
        raise ValueError("expected the text of an HLO module, found no entry computation")
    return entry, computations


def parameter_bytes(text: str) -> int:
    """Bytes of the entry's parameters, without the padding of their layouts."""
    entry, computations = parse(text)
    return sum(size_of(one.shape) for one in computations[entry] if one.opcode == "parameter")


def size_of(shape: str) -> int:
    """Bytes of an array, or of all arrays of a tuple, without padding."""
    return sum(math.prod(sizes) * bits // 8 for bits, sizes in _arrays(shape))


def _arrays(shape: str) -> Iterator[tuple[int, list[int]]]:
    for kind, sizes in _ARRAY.findall(shape):
        bits = _BITS.get(kind) if kind in _BITS else int(re.search(r"\d+", kind)[0])
        yield bits, [int(size) for size in sizes.split(",") if size]


def dims(shape: str) -> list[int]:
    """The sizes of an array's axes."""
    return next((sizes for _, sizes in _arrays(shape)), [])


def _instruction(line: str, shapes: Mapping[str, str]) -> Instruction | None:
    head = _LINE.match(line)
    if head is None:
        return None
    rest = line[head.end() - 1 :]
    # A tuple's shape has parentheses of its own.
    start = _matching(rest, 1) if rest.startswith(" (") else 0
    opcode = _OPCODE.search(rest, start)
    if opcode is None:
        return None
    end = _matching(rest, opcode.end() - 1)
    names = _NAME.findall(rest[opcode.end() : end])
    operands = tuple(shapes[name] for name in names if name in shapes)
    return Instruction(head[1], rest[1 : opcode.start()], opcode[1], operands, line)


def _matching(text: str, start: int) -> int:
    """The index of the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return len(text)
