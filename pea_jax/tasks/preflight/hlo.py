"""What the text of a compiled program says that its cost analysis doesn't.

XLA counts the body of a loop once, whatever it runs, the FLOPs of a Pallas kernel not at all, and
nobody's collectives. All three can be read from the optimised HLO (`compiled.as_text()`): each
computation is counted as often as it runs, beginning at the entry.
"""

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

#: Of the operations that move data between devices; an asynchronous one counts where it starts.
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

#: Operations that move nothing themselves.
_FREE = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota"),
        *("while", "conditional", "call", "after-all", "partition-id", "replica-id"),
        *("async-done", "copy-done", "optimization-barrier"),
    )
)

_BITS = {"pred": 8, "bf16": 16, "token": 0, "s4": 4, "u4": 4}
_ARRAY = re.compile(r"\b(pred|token|bf16|[suf]\d+(?:e\dm\d\w*)?|c64|c128)\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = ")
_OPCODE = re.compile(r" ([a-z][\w\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%[\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_NUMBER = re.compile(r"\bs32\[\]\S* constant\((\d+)\)")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_SPLASH = re.compile(r"splash_m[hq]a_(fwd|dq|dkv)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: its own.
      shape: of its result, as HLO writes it.
      opcode: "fusion", "convolution", ...
      operands: names of instructions of the same computation.
      text: the whole line.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    text: str

    def called(self) -> dict[str, list[str]]:
        """The computations that it runs, by how it refers to them."""
        return {kind: _NAME.findall(names) for kind, names in _CALLED.findall(self.text)}


Computation = Mapping[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Counts:
    """Of one run of a program, on one chip.

    Attributes:
      flops: of dots and convolutions, multiplications and additions.
      bytes: read and written by every instruction, as if nothing stayed on the chip.
      kernel_flops: of Pallas kernels that are known.
      unknown_kernels: names of Pallas kernels that aren't.
      collectives: kind -> how many run, and the bytes that a chip sends for them.
    """

    flops: float
    bytes: float
    kernel_flops: float
    unknown_kernels: tuple[str, ...]
    collectives: Mapping[str, tuple[int, float]]


def count(text: str, trips: Mapping[int, int] | None = None) -> tuple[Counts, Counts]:
    """What a program does: as it runs, and with every computation counted once.

    The ratio of the two carries over to the compiler's own counts, which are of the second kind.

    Args:
      text: of the optimised HLO.
      trips: how often a loop really does its work whose compiler-known trip count is the key: the
        rows of a sampler's plan that are steps.
    """
    entry, computations = parse(text)
    runs = _runs(entry, computations, trips or {})
    return _total(computations, runs), _total(computations, dict.fromkeys(runs, 1))


def parse(text: str) -> tuple[str, dict[str, Computation]]:
    """The entry's name, and every computation: name -> its instructions by name."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, inside = "", None
    for line in text.splitlines():
        if inside is None:
            if found := _HEAD.match(line):
                inside = computations[found[2]] = {}
                entry = found[2] if found[1] else entry
        elif line == "}" or line.startswith("}, execution_thread"):
            inside = None  # a kernel's attributes have lines that begin with }} too
        elif instruction := _instruction(line):
            inside[instruction.name] = instruction
    if not entry:
        raise ValueError("expected the text of an HLO module, found no entry computation")
    return entry, computations


def parameter_bytes(text: str) -> int:
    """Of the entry's parameters, without the padding of their layouts."""
    entry, computations = parse(text)
    return sum(
        size_of(one.shape) for one in computations[entry].values() if one.opcode == "parameter"
    )


def size_of(shape: str) -> int:
    """Bytes of an array or of all arrays of a tuple, without padding."""
    return sum(math.prod(sizes) * bits // 8 for bits, sizes in _arrays(shape))


def _arrays(shape: str) -> Iterator[tuple[int, list[int]]]:
    for kind, sizes in _ARRAY.findall(shape):
        bits = _BITS.get(kind) if kind in _BITS else int(re.search(r"\d+", kind)[0])
        yield bits, [int(size) for size in sizes.split(",") if size]


def _dims(shape: str) -> list[int]:
    return next((sizes for _, sizes in _arrays(shape)), [])


def _instruction(line: str) -> Instruction | None:
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
    operands = tuple(_NAME.findall(rest[opcode.end() : end]))
    return Instruction(head[1], rest[1 : opcode.start()], opcode[1], operands, line)


def _matching(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return len(text)


def _runs(
    entry: str, computations: Mapping[str, Computation], trips: Mapping[int, int]
) -> dict[str, float]:
    """How often each computation runs that the entry reaches other than through a fusion."""
    runs: dict[str, float] = defaultdict(float)

    def visit(name: str, times: float) -> None:
        runs[name] += times
        for one in computations[name].values():
            if one.opcode in ("fusion", "all-reduce", "reduce", "sort", "scatter", "reduce-window"):
                continue
            for kind, names in one.called().items():
                if kind == "branch_computations":
                    # As the cost analysis has it: the branch that does most.
                    names = [max(names, key=lambda name: len(computations[name]))]
                repeats = 1
                if one.opcode == "while":
                    repeats = _trips(one, computations)
                    repeats = trips.get(repeats, repeats)
                for called in names:
                    if called in computations:
                        visit(called, times * repeats)

    visit(entry, 1)
    return dict(runs)


def _trips(loop: Instruction, computations: Mapping[str, Computation]) -> int:
    """How often a loop runs: as the compiler says, or what a scan's condition compares with."""
    if known := _TRIPS.search(loop.text):
        return int(known[1])
    pending, numbers = list(loop.called().get("condition", [])), []
    while pending:
        for one in computations.get(pending.pop(), {}).values():
            numbers += [int(number) for number in _NUMBER.findall(one.text)]
            pending += one.called().get("calls", [])
    return max(numbers, default=1)


def _total(computations: Mapping[str, Computation], runs: Mapping[str, float]) -> Counts:
    flops = moved = kernels = 0.0
    unknown: set[str] = set()
    counts: Counter[str] = Counter()
    sent: dict[str, float] = defaultdict(float)
    for name, times in runs.items():
        inside = computations[name]
        for one in inside.values():
            flops += times * _flops(one, inside, computations)
            if one.opcode not in _FREE:
                moved += times * (size_of(one.shape) + sum(_operand_sizes(one, inside)))
            if 'custom_call_target="tpu_custom_call"' in one.text:
                found = _kernel_flops(one, inside)
                kernels += times * (found or 0)
                if found is None:
                    unknown.add(one.name)
        for kind, one, place in _collectives(inside, computations):
            counts[kind] += round(times)
            sent[kind] += times * _sent(kind, one, place)
    collectives = {kind: (counts[kind], sent[kind]) for kind in COLLECTIVES if counts[kind]}
    return Counts(flops, moved, kernels, tuple(sorted(unknown)), collectives)


def _collectives(
    inside: Computation, computations: Mapping[str, Computation]
) -> Iterator[tuple[str, Instruction, Computation]]:
    """The collectives of a computation, of which kind, and where they lie.

    On TPUs one that runs beside computations is in several fusions: the one that starts it, those
    that it goes on beside, and the one that ends it. All of them name the same channel.
    """
    parts = [(inside, one) for one in inside.values()]
    for one in inside.values():
        if one.opcode == "fusion":
            places = [computations[name] for name in one.called().get("calls", [])]
            parts += [(place, part) for place in places for part in place.values()]
    channels = set()
    for place, part in parts:
        kind = part.opcode.removesuffix("-start")
        named = _CHANNEL.search(part.text)
        channel = named[1] if named else part.name
        if kind in COLLECTIVES and channel not in channels:
            channels.add(channel)
            yield kind, part, place


def _operand_sizes(one: Instruction, inside: Computation) -> Iterator[int]:
    return (size_of(inside[name].shape) for name in one.operands if name in inside)


def _flops(one: Instruction, inside: Computation, computations: Mapping[str, Computation]) -> float:
    """Of an instruction's dots and convolutions, those of a fusion included."""
    if one.opcode == "fusion":
        return sum(
            _flops(part, computations[name], computations)
            for name in one.called().get("calls", [])
            for part in computations[name].values()
        )
    if one.opcode not in ("dot", "convolution") or len(one.operands) != 2:
        return 0.0
    out = math.prod(_dims(one.shape))
    first, second = (_dims(inside[name].shape) for name in one.operands)
    if one.opcode == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.text)
        contracted = [int(axis) for axis in axes[1].split(",") if axis] if axes else []
        return 2.0 * out * math.prod(first[axis] for axis in contracted)
    labels = _LABELS.search(one.text)
    if labels is None or not second:
        return 0.0
    flops = 2.0 * out * math.prod(second) / second[labels[2].index("o")]
    # Of the pairs of an output and a kernel's place, those that see padding do nothing.
    for axis, pairs in _seen(one.text, first, second, _dims(one.shape), labels.groups()):
        flops *= pairs / (second[labels[2].index(axis)] * _dims(one.shape)[labels[3].index(axis)])
    return flops


def _seen(
    text: str, first: list[int], second: list[int], out: list[int], labels: tuple[str, str, str]
) -> Iterator[tuple[str, int]]:
    """Each spatial axis of a convolution, and how many pairs on it see an entry of the input."""
    window = re.search(r"window=\{([^}]*)\}", text)
    given = dict(part.split("=") for part in window[1].split()) if window else {}
    axes = sorted(filter(str.isdigit, labels[0]))

    def numbers(name: str, default: str) -> list[str]:
        return given[name].split("x") if name in given else [default] * len(axes)

    fields = ("stride", "1"), ("pad", "0_0"), ("lhs_dilate", "1"), ("rhs_dilate", "1")
    for axis, *values in zip(axes, *(numbers(*field) for field in fields), strict=False):
        stride, low, dilate, spread = (int(value.split("_")[0]) for value in values)
        size, kernel = first[labels[0].index(axis)], second[labels[1].index(axis)]
        end = (size - 1) * dilate + 1
        places = (
            step * stride - low + place * spread
            for step in range(out[labels[2].index(axis)])
            for place in range(kernel)
        )
        yield axis, sum(0 <= place < end and place % dilate == 0 for place in places)


def _kernel_flops(one: Instruction, inside: Computation) -> float | None:
    """Of splash attention, whose kernel's name says which pass it is; None for another kernel.

    Forward 2 products of Q x L x K a head; the gradient of the queries 3, of keys and values 4,
    for both make the logits again.
    """
    found = _SPLASH.search(one.text)
    if found is None:
        return None
    shapes = [inside[name].shape for name in one.operands if name in inside]
    # Before query, key and value come tables of int8 and int32: which blocks are masked.
    heads = [_dims(shape) for shape in shapes if re.match("bf16|f32", shape)]
    if len(heads) < 2:
        return None
    *batch, queries, size = heads[0]
    keys = heads[1][-2]
    products = {"fwd": 2, "dq": 3, "dkv": 4}[found[1]]
    return 2.0 * products * math.prod(batch) * queries * keys * size


def _sent(kind: str, one: Instruction, inside: Computation) -> float:
    """Bytes that a chip sends, by the ring algorithms."""
    devices = _group(one.text)
    if devices == 1:
        return 0.0
    given = float(sum(_operand_sizes(one, inside)))
    share = (devices - 1) / devices
    match kind:
        case "all-reduce":
            return 2 * share * given
        case "all-gather":
            return given * (devices - 1)
        case "collective-permute":
            return given
    return given * share


def _group(text: str) -> int:
    """How many devices take part in one group of a collective."""
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return len(found[1].split(","))
    # mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}: over the axes in braces, of which ':(1)2'
    # may be a part; without device_ids where devices lie in their own order.
    mesh = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))? ?(?:\{([^}]*)\})?"
    if found := re.search(mesh, text):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2] or found[1])
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    return 2
