"""Counts of FLOPs, bytes and collectives in the text of a compiled program.

XLA's cost analysis counts a loop's body once, whatever the loop's trip count, and ignores Pallas
kernels and collectives. The optimised HLO has all three: here each computation counts as often as
it runs, starting from the entry.
"""

import dataclasses
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from pea_jax.tasks.preflight.hlo_text import Computation, Instruction, dims, parse, size_of

#: Operations that move data between devices; an asynchronous one counts where it starts.
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

#: Operations that move no data themselves.
_FREE = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota"),
        *("while", "conditional", "call", "after-all", "partition-id", "replica-id"),
        *("async-done", "copy-done", "optimization-barrier"),
    )
)

_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_NUMBER = re.compile(r"\bs32\[\]\S* constant\((\d+)\)")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_SPLASH = re.compile(r"splash_m[hq]a_(fwd|dq|dkv)")


@dataclasses.dataclass(frozen=True)
class OperationCounts:
    """Counts of one run of a program, on one chip.

    Attributes:
      flops: multiplications and additions of dots and convolutions.
      bytes: read and written by every instruction, as if nothing stayed in on-chip memory.
      kernel_flops: of known Pallas kernels.
      unknown_kernels: names of the other Pallas kernels.
      collectives: kind -> the number that run, and the bytes that a chip sends for them.
    """

    flops: float
    bytes: float
    kernel_flops: float
    unknown_kernels: tuple[str, ...]
    collectives: Mapping[str, tuple[int, float]]


def count(
    text: str, trips: Mapping[int, int] | None = None
) -> tuple[OperationCounts, OperationCounts]:
    """The counts of a program as it runs, and with every computation counted once.

    The ratio of the two corrects the compiler's own counts, which are of the second kind.

    Args:
      text: of the optimised HLO.
      trips: compiler-known trip count of a loop -> the iterations that do work: a sampler's plan
        has rows that are no steps.
    """
    entry, computations = parse(text)
    runs = _runs(entry, computations, trips or {})
    return _total(computations, runs), _total(computations, dict.fromkeys(runs, 1))


def _runs(
    entry: str, computations: Mapping[str, Computation], trips: Mapping[int, int]
) -> dict[str, float]:
    """The number of runs of each computation that the entry reaches, fusions excepted."""
    runs: dict[str, float] = defaultdict(float)

    def visit(name: str, times: float) -> None:
        runs[name] += times
        for one in computations[name]:
            if one.opcode in ("fusion", "all-reduce", "reduce", "sort", "scatter", "reduce-window"):
                continue
            for kind, names in one.called().items():
                if kind == "branch_computations":
                    # The largest branch, as in the cost analysis.
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
    """A loop's trip count: the compiler's, or the constant in the condition of a scan."""
    if known := _TRIPS.search(loop.text):
        return int(known[1])
    pending, numbers = list(loop.called().get("condition", [])), []
    while pending:
        for one in computations.get(pending.pop(), []):
            numbers += [int(number) for number in _NUMBER.findall(one.text)]
            pending += one.called().get("calls", [])
    return max(numbers, default=1)


def _total(computations: Mapping[str, Computation], runs: Mapping[str, float]) -> OperationCounts:
    flops = moved = kernels = 0.0
    unknown: set[str] = set()
    counts: Counter[str] = Counter()
    sent: dict[str, float] = defaultdict(float)
    for name, times in runs.items():
        for one in computations[name]:
            flops += times * _flops(one, computations)
            if one.opcode not in _FREE:
                moved += times * sum(map(size_of, (one.shape, *one.operands)))
            if 'custom_call_target="tpu_custom_call"' in one.text:
                found = _kernel_flops(one)
                kernels += times * (found or 0)
                if found is None:
                    unknown.add(one.name)
        for kind, one in _collectives(name, computations):
            counts[kind] += round(times)
            sent[kind] += times * _sent(kind, one)
    collectives = {kind: (counts[kind], sent[kind]) for kind in COLLECTIVES if counts[kind]}
    return OperationCounts(flops, moved, kernels, tuple(sorted(unknown)), collectives)


def _collectives(
    name: str, computations: Mapping[str, Computation]
) -> Iterator[tuple[str, Instruction]]:
    """The collectives of a computation: kind and instruction.

    On TPUs one that overlaps with computation appears in several fusions: the one that starts it,
    those that overlap with it, and the one that ends it. All of them name the same channel.
    """
    parts = [*computations[name]]
    for one in computations[name]:
        if one.opcode == "fusion":
            parts += _fused(one, computations)
    channels = set()
    for part in parts:
        kind = part.opcode.removesuffix("-start")
        named = _CHANNEL.search(part.text)
        channel = named[1] if named else part.name
        if kind in COLLECTIVES and channel not in channels:
            channels.add(channel)
            yield kind, part


def _fused(fusion: Instruction, computations: Mapping[str, Computation]) -> Iterator[Instruction]:
    return itertools.chain(*(computations[name] for name in fusion.called().get("calls", [])))


def _flops(one: Instruction, computations: Mapping[str, Computation]) -> float:
    """FLOPs of an instruction's dots and convolutions, including those of a fusion."""
    if one.opcode == "fusion":
        return sum(_flops(part, computations) for part in _fused(one, computations))
    if one.opcode not in ("dot", "convolution") or len(one.operands) != 2:
        return 0.0
    out = math.prod(dims(one.shape))
    first, second = map(dims, one.operands)
    if one.opcode == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.text)
        contracted = [int(axis) for axis in axes[1].split(",") if axis] if axes else []
        return 2.0 * out * math.prod(first[axis] for axis in contracted)
    labels = _LABELS.search(one.text)
    if labels is None or not second:
        return 0.0
    flops = 2.0 * out * math.prod(second) / second[labels[2].index("o")]
    # Kernel positions that fall on padding cost nothing.
    for axis, pairs in _useful_pairs(one.text, first, second, dims(one.shape), labels.groups()):
        flops *= pairs / (second[labels[2].index(axis)] * dims(one.shape)[labels[3].index(axis)])
    return flops


def _useful_pairs(
    text: str, first: list[int], second: list[int], out: list[int], labels: tuple[str, str, str]
) -> Iterator[tuple[str, int]]:
    """Per spatial axis of a convolution, the pairs (output, kernel entry) that read input."""
    window = re.search(r"window=\{([^}]*)\}", text)
    fields = dict(part.split("=") for part in window[1].split()) if window else {}
    axes = sorted(filter(str.isdigit, labels[0]))

    def numbers(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * len(axes)

    defaults = ("stride", "1"), ("pad", "0_0"), ("lhs_dilate", "1"), ("rhs_dilate", "1")
    for axis, *values in zip(axes, *(numbers(*each) for each in defaults), strict=False):
        stride, low, dilate, spread = (int(value.split("_")[0]) for value in values)
        size, kernel = first[labels[0].index(axis)], second[labels[1].index(axis)]
        end = (size - 1) * dilate + 1
        places = (
            step * stride - low + place * spread
            for step in range(out[labels[2].index(axis)])
            for place in range(kernel)
        )
        yield axis, sum(0 <= place < end and place % dilate == 0 for place in places)


def _kernel_flops(one: Instruction) -> float | None:
    """FLOPs of splash attention, by the pass in the kernel's name; None for another kernel.

    Products of Q x L x K per head: 2 forward, 3 for the gradient of the queries, 4 for that of keys
    and values; both gradients recompute the logits.
    """
    found = _SPLASH.search(one.text)
    if found is None:
        return None
    # Tables of int8 and int32, of masked blocks, precede query, key and value.
    heads = [dims(shape) for shape in one.operands if re.match("bf16|f32", shape)]
    if len(heads) < 2:
        return None
    *batch, queries, size = heads[0]
    keys = heads[1][-2]
    products = {"fwd": 2, "dq": 3, "dkv": 4}[found[1]]
    return 2.0 * products * math.prod(batch) * queries * keys * size


def _sent(kind: str, one: Instruction) -> float:
    """Bytes that a chip sends in the ring algorithm."""
    devices = _group(one.text)
    share = (devices - 1) / devices
    factors = {"all-reduce": 2 * share, "all-gather": devices - 1, "collective-permute": 1}
    return float(factors.get(kind, share) * sum(map(size_of, one.operands)))


def _group(text: str) -> int:
    """The number of devices in one group of a collective."""
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return len(found[1].split(","))
    # mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}: over the axes in braces, or a part ':(1)2'
    # of one; device_ids is absent where devices are in their own order.
    mesh = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))? ?(?:\{([^}]*)\})?"
    if found := re.search(mesh, text):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2] or found[1])
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    return 2
