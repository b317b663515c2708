"""The cost of a compiled program on one chip: memory, FLOPs, bytes, and the roofline's time.

Memory is the compiler's own analysis. FLOPs and bytes are its cost analysis, corrected for loops
and for splash attention (`hlo`). The bytes include every instruction's operands and results, even
those that stay in on-chip memory, so the time for memory is an upper bound.
"""

import dataclasses
import math
import re
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax

from pea_jax.runtime.chips import Chip
from pea_jax.runtime.config_fields import as_tuples
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
        """Per chip, at the roofline."""
        return self.rows / self.roofline_seconds if self.seconds else None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Cost":
        """The inverse of `as_dict`, after JSON."""
        return cls(**{info.name: as_tuples(values[info.name]) for info in dataclasses.fields(cls)})

    def as_dict(self) -> dict[str, Any]:
        """All fields and properties, for JSON."""
        names = ("roofline_seconds", "bound", "images_per_second")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in names}


def measure(
    lowered: jax.stages.Lowered,
    *,
    chip: Chip | None,
    arguments: Mapping[str, Any],
    rows: int,
    shards: int,
    trips: Mapping[int, int] | None = None,
) -> Cost:
    """Compile a program and return its cost; also where the compiler refuses it for its memory.

    Args:
      lowered: for the devices of the shardings in `arguments`.
      chip: one of these devices.
      arguments: group -> tree of arrays or shapes, with shardings: everything in the devices'
        memory when the program runs.
      rows: of the batch, on one chip.
      shards: the number of parts of a batch.
      trips: as for `hlo.count`.

    Raises:
      jax.errors.JaxRuntimeError: the compiler failed for another reason.
    """
    groups = {name: chip_bytes(tree) for name, tree in arguments.items()}
    compiled, refusal = None, ""
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        refusal = str(error)
        if "RESOURCE_EXHAUSTED" not in refusal:
            raise
    seconds = time.perf_counter() - start
    if compiled is None:
        results = _refused(refusal, lowered, groups, rows * shards, shards)
    else:
        results = _compiled(compiled, chip, sum(groups.values()), trips)
    limit = chip and chip.memory
    return Cost(limit=limit, arguments=groups, rows=rows, compile_seconds=seconds, **results)


def _compiled(
    compiled: jax.stages.Compiled,
    chip: Chip | None,
    arguments: int,
    trips: Mapping[int, int] | None,
) -> dict[str, Any]:
    """The fields of the cost of a compiled program; its arguments have `arguments` bytes."""
    text, memory = compiled.as_text(), compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    real, once = hlo.count(text, trips)
    flops = cost.get("flops", 0.0) * _ratio(real.flops, once.flops) + real.kernel_flops
    moved = cost.get("bytes accessed", 0.0) * _ratio(real.bytes, once.bytes)
    # Arguments that the program does not use are not passed to it, but occupy memory.
    unused = max(0, arguments - parameter_bytes(text))
    parts = {
        "argument_bytes": memory.argument_size_in_bytes + unused,
        "temporary_bytes": memory.temp_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
    }
    total = sum(parts.values())
    sent = sum(bytes_sent for _, bytes_sent in real.collectives.values())
    return parts | {
        "fits": chip is None or total <= chip.memory,
        "total": total,
        "flops": flops,
        "bytes": moved,
        "collectives": real.collectives,
        "seconds": chip
        and {
            "compute": flops / chip.flops,
            "memory": moved / chip.bandwidth,
            "interconnect": sent / chip.interconnect,
        },
        "unknown_kernels": real.unknown_kernels,
    }


def _refused(
    message: str,
    lowered: jax.stages.Lowered,
    groups: Mapping[str, int],
    rows: int,
    shards: int,
) -> dict[str, Any]:
    """The fields of the cost of a program of `rows` rows that the compiler refused."""
    total, largest = _needed(message, sum(groups.values()))
    largest = largest or _largest_values(lowered.as_text(), rows, shards)
    largest += [(size, name) for name, size in groups.items()]
    largest = tuple(sorted(largest, reverse=True)[:_LARGEST])
    return {"fits": False, "total": total, "largest": largest}


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
