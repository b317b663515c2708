"""The cost of a compiled program on one chip: memory, FLOPs, bytes, and the roofline's time.

Memory is the compiler's own analysis. FLOPs and bytes are its cost analysis, corrected for loops
and for splash attention (`hlo`). The bytes include every instruction's operands and results, even
those that stay in on-chip memory, so the time for memory is an upper bound.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax

from pea_jax.runtime.chips import Chip
from pea_jax.tasks.preflight import hlo
from pea_jax.tasks.preflight.hlo_text import parameter_bytes

#: The number of largest consumers that are listed.
_LARGEST = 8

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one program on one chip; bytes, FLOPs and seconds of one call.

    Attributes:
      fits: whether the memory suffices; where the compiler refused, only the next four, `total`
        and `largest` are known.
      limit: bytes of memory that a program may use; None for an unknown chip.
      arguments: bytes of each group of arguments, without padding.
      rows: of the batch.
      compile_seconds: of the compiler.
      argument_bytes: of all arguments with padding, including those that the program does not use.
      temporary_bytes: at the peak.
      output_bytes: of outputs that do not reuse an argument's memory.
      code_bytes: of the program itself.
      total: the sum of these four.
      flops: multiplications and additions.
      bytes: read and written.
      collectives: kind -> the number that run, and the bytes sent.
      seconds: for "compute" and "interconnect" at least, for "memory" at most, at their peaks; None
        for an unknown chip.
      unknown_kernels: Pallas kernels whose FLOPs are not counted.
      largest: (bytes, name), where the program does not fit.
    """

    fits: bool
    limit: float | None
    arguments: Mapping[str, int]
    rows: int
    compile_seconds: float
    argument_bytes: int = 0
    temporary_bytes: int = 0
    output_bytes: int = 0
    code_bytes: int = 0
    total: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    collectives: Mapping[str, tuple[int, float]] = dataclasses.field(default_factory=dict)
    seconds: Mapping[str, float] | None = None
    unknown_kernels: tuple[str, ...] = ()
    largest: tuple[tuple[int, str], ...] = ()

    @property
    def roofline_seconds(self) -> float | None:
        """The longest of `seconds`; a lower bound of the time of a call where it is "compute"."""
        return max(self.seconds.values()) if self.seconds else None

    @property
    def bound(self) -> str | None:
        """The limit behind that time: "compute", "memory" or "interconnect"."""
        return max(self.seconds, key=self.seconds.get) if self.seconds else None

    @property
    def images_per_second(self) -> float | None:
        """Of one chip, at the roofline."""
        return self.rows / self.roofline_seconds if self.seconds else None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Cost":
        """The inverse of `as_dict`, after JSON."""
        fields = {field.name: values[field.name] for field in dataclasses.fields(cls)}
        pairs = {kind: tuple(pair) for kind, pair in fields["collectives"].items()}
        largest = tuple(tuple(pair) for pair in fields["largest"])
        kernels = tuple(fields["unknown_kernels"])
        fields |= {"collectives": pairs, "largest": largest, "unknown_kernels": kernels}
        return cls(**fields)

    def as_dict(self) -> dict[str, Any]:
        """All fields and properties, for JSON."""
        names = ("roofline_seconds", "bound", "images_per_second")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in names}


def read(
    compiled: jax.stages.Compiled,
    *,
    chip: Chip | None,
    arguments: Mapping[str, Any],
    rows: int,
    compile_seconds: float,
    trips: Mapping[int, int] | None = None,
) -> Cost:
    """The cost of a compiled program.

    Args:
      compiled: for the devices of the shardings in `arguments`.
      chip: one of these devices.
      arguments: group -> tree of arrays or shapes, with shardings: everything in the devices'
        memory when the program runs.
      rows: of the batch, on one chip.
      compile_seconds: of the compiler.
      trips: as for `hlo.count`.
    """
    text, memory = compiled.as_text(), compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    real, once = hlo.count(text, trips)
    flops = cost.get("flops", 0.0) * _ratio(real.flops, once.flops) + real.kernel_flops
    moved = cost.get("bytes accessed", 0.0) * _ratio(real.bytes, once.bytes)
    groups = {name: chip_bytes(tree) for name, tree in arguments.items()}
    # Arguments that the program does not use are not passed to it, but occupy memory.
    unused = max(0, sum(groups.values()) - parameter_bytes(text))
    parts = {
        "argument_bytes": memory.argument_size_in_bytes + unused,
        "temporary_bytes": memory.temp_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
    }
    total = sum(parts.values())
    sent = sum(bytes_sent for _, bytes_sent in real.collectives.values())
    return Cost(
        fits=chip is None or total <= chip.memory,
        limit=chip and chip.memory,
        arguments=groups,
        rows=rows,
        compile_seconds=compile_seconds,
        **parts,
        total=total,
        flops=flops,
        bytes=moved,
        collectives=real.collectives,
        seconds=chip
        and {
            "compute": flops / chip.flops,
            "memory": moved / chip.bandwidth,
            "interconnect": sent / chip.interconnect,
        },
        unknown_kernels=real.unknown_kernels,
    )


def refused(
    error: Exception,
    lowered: jax.stages.Lowered,
    *,
    chip: Chip | None,
    arguments: Mapping[str, Any],
    rows: int,
    shards: int,
    compile_seconds: float,
) -> Cost:
    """The cost of a program that the compiler refused because it does not fit.

    Args:
      error: of the compiler.
      lowered: the program before compilation.
      chip: as for `read`.
      arguments: as for `read`.
      rows: as for `read`.
      shards: the number of parts of a batch.
      compile_seconds: as for `read`.
    """
    groups = {name: chip_bytes(tree) for name, tree in arguments.items()}
    total, largest = _needed(str(error), sum(groups.values()))
    if not largest:
        largest = _largest_values(lowered.as_text(), rows * shards, shards)
    largest += [(size, name) for name, size in groups.items()]
    return Cost(
        fits=False,
        limit=chip and chip.memory,
        arguments=groups,
        rows=rows,
        compile_seconds=compile_seconds,
        total=total,
        largest=tuple(sorted(largest, reverse=True)[:_LARGEST]),
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of the compiler means that the program does not fit."""
    return "RESOURCE_EXHAUSTED" in str(error)


def chip_bytes(tree: Any) -> int:
    """Bytes on one device of a tree of arrays or shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * jax.dtypes.itemsize_bits(leaf.dtype) // 8
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)
        else 8
        for leaf in jax.tree.leaves(tree)
    )


def _ratio(real: float, once: float) -> float:
    return real / once if once else 1.0


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * _UNITS[unit])


def _needed(message: str, arguments: int) -> tuple[int, list[tuple[int, str]]]:
    """The memory needed by the compiler's message, and its list of the largest allocations.

    There are two messages: of all memory, with the list, and an early one of temporaries alone.
    """
    total = 0
    if used := re.search(r"Used ([\d.]+)([KMGT]?)", message):
        total = _bytes(*used.groups())
    elif temporaries := re.search(r"temporaries \(([\d.]+)([KMGT]?)\)", message):
        total = _bytes(*temporaries.groups()) + arguments
    largest = []
    for part in re.split(r"\n\s*\d+\. ", message)[1:]:
        size = re.search(r"Size: ([\d.]+)([KMGT]?)", part)
        name = re.search(r"Operator: (.*)", part)
        shape = re.search(r"Shape: (\S+?)\{", part)
        if size:
            label = " ".join(found[1].strip() for found in (shape, name) if found)
            largest.append((_bytes(*size.groups()), label or "a temporary"))
    return total, largest


def _largest_values(text: str, rows: int, shards: int) -> list[tuple[int, str]]:
    """The types that take most memory in the traced program, on one chip, all values summed."""
    counts: Counter[str] = Counter()
    for line in text.splitlines():
        found = re.search(r"(?:->|:) tensor<((?:\d+x)+[a-z]\w*)>(?: loc\(.*)?$", line)
        if found and " = stablehlo." in line:
            counts[found[1]] += 1
    values = []
    for kind, number in counts.items():
        *sizes, dtype = kind.split("x")
        bits = int(re.search(r"\d+", dtype)[0])
        split = shards if int(sizes[0]) % shards == 0 and int(sizes[0]) >= rows else 1
        size = math.prod(map(int, sizes)) * bits // 8 // split
        values.append((size * number, f"{number} values {dtype}[{','.join(sizes)}], in turn"))
    return sorted(values, reverse=True)[:4]
