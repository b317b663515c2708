"""The printed report of preflight: a table per program, and advice where it does not fit."""

import math

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Column, Table

from pea_jax.tasks.preflight.roofline import Cost
from pea_jax.tasks.preflight.workloads import Target, Workload

#: model.remat -> the next value, which saves more of the activations' memory.
_MORE_REMAT = {"none": "blocks", "blocks": "full"}


def show(workload: Workload, cost: Cost, target: Target, changes: list[str]) -> None:
    """Print the table of one program, and the advice."""
    table = Table(
        *("", Column(justify="right"), ""),
        title=f"{workload.name}; {target.topology}, {len(target.devices)} devices",
        title_justify="left",
        show_header=False,
    )
    for cells in _lines(cost):
        table.add_row(*cells)
    console = Console()
    console.print(table)
    for line in changes:
        console.print(f"  {line}", highlight=False, soft_wrap=True)


def headline(workload: Workload, cost: Cost) -> str:
    """One line on a program that does not fit."""
    needed = f"{_gb(cost.total)} of" if cost.total else "more than"
    return f"{workload.name}: {needed} {_gb(cost.limit)} a chip"


def advice(config: ConfigDict, workload: Workload, cost: Cost, target: Target) -> list[str]:
    """Changes of the config where a program does not fit, the strongest first."""
    if cost.fits:
        return []
    rows, devices = sum(workload.rows.values()), len(target.devices)
    changes = []
    if workload.task == "train" and config.model.remat in _MORE_REMAT:
        more = _MORE_REMAT[config.model.remat]
        changes.append(f"--config.model.remat={more}: activations are computed twice, not kept")
    if rows > 1:
        field = "data.batch_size" if workload.task == "train" else "sample.batch_size"
        half = rows // 2
        changes.append(
            f"--batch {half}: half the rows per chip, with {field}={half * devices} for the run"
        )
    common = math.gcd(*workload.rows.values())
    finer = range(config.train.accumulation_steps + 1, common + 1)
    slices = next((count for count in finer if common % count == 0), None)
    if workload.task == "train" and slices:
        changes.append(
            f"--config.train.accumulation_steps={slices}: the same step, in the memory of "
            f"{rows // slices} rows"
        )
    weights, shards = cost.arguments.get("weights", 0), config.mesh.fsdp
    if shards < devices and weights > 0.2 * (cost.limit or 0):
        more = min(devices, max(4, 2 * shards))
        changes.append(
            f"--config.mesh.fsdp={more}: the frozen weights, {_gb(weights)} a chip, are split "
            f"over {more}"
        )
    return changes or ["a smaller picture, or chips with more memory"]


def _lines(cost: Cost) -> list[tuple[str, str, str]]:
    groups = ", ".join(f"{name} {_gb(size)}" for name, size in cost.arguments.items())
    limit = f"of {_gb(cost.limit)}" if cost.limit else ""
    lines = []
    if cost.argument_bytes:
        lines += [
            ("arguments", _gb(cost.argument_bytes), groups),
            ("temporaries", _gb(cost.temporary_bytes), ""),
            ("output", _gb(cost.output_bytes), "beside what takes the arguments' place"),
            ("program", _gb(cost.code_bytes), ""),
        ]
    verdict = "fits" if cost.fits else "does not fit"
    lines.append(("total", _gb(cost.total), f"{limit} {verdict}".strip()))
    lines += [("largest", _gb(size), what) for size, what in cost.largest]
    if cost.flops:
        lines += [("TFLOP", f"{cost.flops / 1e12:.2f}", ""), ("accessed", _gb(cost.bytes), "")]
        lines += [
            (kind, f"{sent / 1e6:.1f} MB", f"sent by {number}")
            for kind, (number, sent) in cost.collectives.items()
        ]
    if cost.seconds:
        each = ", ".join(f"{name} {1e3 * value:.1f}" for name, value in cost.seconds.items())
        lines += [
            ("roofline", f"{1e3 * cost.roofline_seconds:.1f} ms", f"{cost.bound} ({each})"),
            ("images/s", f"{cost.images_per_second:.2f}", "a chip, at the roofline"),
        ]
    if cost.unknown_kernels:
        lines.append(("not counted", "", f"FLOPs of {', '.join(cost.unknown_kernels)}"))
    lines.append(("compiled in", f"{cost.compile_seconds:.0f} s", ""))
    return lines


def _gb(size: float | None) -> str:
    return "?" if size is None else f"{size / 1e9:.2f} GB"
