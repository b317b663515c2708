"""What preflight says: tables for people, and what to change where a program does not fit."""

import math

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from pea_jax.tasks.preflight.programs import Program, Target
from pea_jax.tasks.preflight.roofline import Report

#: What saves more of the activations' memory than each value of model.remat.
_MORE_REMAT = {"none": "blocks", "blocks": "full"}


def show(program: Program, report: Report, target: Target, changes: list[str]) -> None:
    """Prints the table of one program."""
    table = Table(
        title=f"{program.name}; {target.topology}, {len(target.devices)} devices",
        title_justify="left",
        show_header=False,
    )
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for cells in _lines(report):
        table.add_row(*cells)
    console = Console()
    console.print(table)
    for line in changes:
        console.print(f"  {line}", highlight=False, soft_wrap=True)


def headline(program: Program, report: Report) -> str:
    """One line of a program that does not fit."""
    needed = f"{_gb(report.total)} of" if report.total else "more than"
    return f"{program.name}: {needed} {_gb(report.limit)} a chip"


def advice(config: ConfigDict, program: Program, report: Report, target: Target) -> list[str]:
    """What to change where a program does not fit, the strongest first."""
    if report.fits:
        return []
    rows, devices = sum(program.rows.values()), len(target.devices)
    changes = []
    if program.task == "train" and config.model.remat in _MORE_REMAT:
        more = _MORE_REMAT[config.model.remat]
        changes.append(f"--config.model.remat={more}: activations are computed twice, not kept")
    if rows > 1:
        changes.append(
            f"--batch {rows // 2}: half the rows a chip; then a data.batch_size of "
            f"{rows // 2 * devices}"
            if program.task == "train"
            else f"--batch {rows // 2}: then a sample.batch_size of {rows // 2 * devices}"
        )
    common = math.gcd(*program.rows.values())
    finer = range(config.train.accumulation_steps + 1, common + 1)
    slices = next((count for count in finer if common % count == 0), None)
    if program.task == "train" and slices:
        changes.append(
            f"--config.train.accumulation_steps={slices}: the same step, in the memory of "
            f"{rows // slices} rows"
        )
    weights, shards = report.arguments.get("weights", 0), config.mesh.fsdp
    if shards < devices and weights > 0.2 * (report.limit or 0):
        more = min(devices, max(4, 2 * shards))
        changes.append(
            f"--config.mesh.fsdp={more}: the frozen weights, {_gb(weights)} a chip, are split "
            f"over {more}"
        )
    return changes or ["a smaller picture, or chips with more memory"]


def _lines(report: Report) -> list[tuple[str, str, str]]:
    groups = ", ".join(f"{name} {_gb(size)}" for name, size in report.arguments.items())
    limit = f"of {_gb(report.limit)}" if report.limit else ""
    lines = []
    if report.argument_bytes:
        lines += [
            ("arguments", _gb(report.argument_bytes), groups),
            ("temporaries", _gb(report.temporary_bytes), ""),
            ("output", _gb(report.output_bytes), "beside what takes the arguments' place"),
            ("program", _gb(report.code_bytes), ""),
        ]
    verdict = "fits" if report.fits else "does not fit"
    lines.append(("total", _gb(report.total), f"{limit} {verdict}".strip()))
    lines += [("largest", _gb(size), what) for size, what in report.largest]
    if report.flops:
        lines += [
            ("TFLOP", f"{report.flops / 1e12:.2f}", ""),
            ("accessed", _gb(report.bytes), ""),
        ]
        lines += [
            (kind, f"{sent / 1e6:.1f} MB", f"sent by {number}")
            for kind, (number, sent) in report.collectives.items()
        ]
    if report.seconds:
        each = ", ".join(f"{name} {1e3 * value:.1f}" for name, value in report.seconds.items())
        lines += [
            ("roofline", f"{1e3 * report.roofline_seconds:.1f} ms", f"{report.bound} ({each})"),
            ("images/s", f"{report.images_per_second:.2f}", "a chip, at the roofline"),
        ]
    if report.unknown_kernels:
        lines.append(("not counted", "", f"FLOPs of {', '.join(report.unknown_kernels)}"))
    lines.append(("compiled in", f"{report.compile_seconds:.0f} s", ""))
    return lines


def _gb(size: float | None) -> str:
    return "?" if size is None else f"{size / 1e9:.2f} GB"
