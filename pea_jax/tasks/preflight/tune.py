"""The search of `pea-jax preflight --tune`: the rows a chip and the remat that are fastest.

For each remat two small programs say how many rows should fit, if memory grows evenly with them;
that many are compiled, and fewer where the compiler finds no room after all. More may fit, since
the compiler computes some things again by itself where memory gets short: a quarter more is tried
as long as that fits and is faster. A remat that could not win, were arithmetic its only limit, is
not tried further. Where not even one row fits, the frozen weights are split further.
"""

import dataclasses
import json as json_
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from pea_jax.assembly import trainer as runs
from pea_jax.models.unet.unet import REMAT
from pea_jax.tasks.preflight.programs import Program, Target, compiled, rows_of
from pea_jax.tasks.preflight.roofline import Report

#: Rows a chip beyond which nothing is gained that a roofline could show.
MOST_ROWS = 256


@dataclasses.dataclass(frozen=True)
class Try:
    """One compiled choice.

    Attributes:
      rows: a chip.
      remat: `model.remat`.
      fsdp: `mesh.fsdp`.
      reports: one a size of picture.
    """

    rows: int
    remat: str
    fsdp: int
    reports: tuple[Report, ...]

    @property
    def fits(self) -> bool:
        """Whether all sizes do."""
        return all(report.fits for report in self.reports)

    @property
    def total(self) -> int:
        """Bytes that the largest of them needs; 0 where the compiler does not say."""
        return max(report.total for report in self.reports)

    @property
    def speed(self) -> float:
        """Images a second on a chip at the roofline, all sizes being as frequent."""
        return sum(report.rows for report in self.reports) / sum(
            report.roofline_seconds for report in self.reports
        )

    @property
    def ceiling(self) -> float:
        """The same, were arithmetic the only limit: what more rows cannot better."""
        return sum(report.rows for report in self.reports) / sum(
            report.seconds["compute"] for report in self.reports
        )

    def overrides(self, config: ConfigDict, task: str, devices: int) -> list[str]:
        """What to type."""
        if task == "sample":
            return [f"--config.sample.batch_size={self.rows * devices}"]
        rows = rows_of(config, task, self.rows)
        return [
            f"--config.data.batch_size={self.rows * devices}",
            f"--config.data.native_batch_size={rows['native'] * devices}",
            f"--config.model.remat={self.remat}",
            f"--config.mesh.fsdp={self.fsdp}",
        ]


def tune(
    config: ConfigDict,
    target: Target,
    task: str,
    sizes: Sequence[tuple[int, int]],
    *,
    json: bool = False,
) -> Try:
    """Prints every choice that was compiled and names the fastest that fits.

    Raises:
      ValueError: the chip's speed is not known, or nothing fits.
    """
    if target.chip is None:
        kind = target.devices[0].device_kind
        raise ValueError(f"--tune: the memory and the speed of a {kind!r} are not known")
    tries = []
    for one in _tries(config, target, task, sizes):
        tries.append(one)
        if not json:
            print(_line(one), flush=True)
    fitting = [one for one in tries if one.fits]
    best = max(fitting, key=lambda one: one.speed, default=None)
    told = best.overrides(config, task, len(target.devices)) if best else []
    if json:
        print(
            json_.dumps(
                {
                    "tries": [_as_dict(one) for one in tries],
                    "best": best and _as_dict(best),
                    "overrides": told,
                }
            )
        )
    else:
        _show(tries, best)
    if best is None:
        raise ValueError(
            f"nothing fits: not even one row a chip of {target.chip.memory / 1e9:.1f} GB"
        )
    if not json:
        print(f"fastest that fits: {' '.join(told)}")
    return best


def _tries(
    config: ConfigDict, target: Target, task: str, sizes: Sequence[tuple[int, int]]
) -> Iterator[Try]:
    best = 0.0
    for fsdp in _splits(config, target):
        for remat in REMAT if task == "train" else (config.model.remat,):
            for one in _of_remat(config, target, task, sizes, remat, fsdp, best):
                if one.fits:
                    best = max(best, one.speed)
                yield one
        if best:
            return


def _splits(config: ConfigDict, target: Target) -> Iterator[int]:
    """The config's own number first, then more of those that divide the devices."""
    devices = len(target.devices)
    own = target.mesh(config).shape["fsdp"]
    yield own
    yield from (count for count in (4, 16) if count > own and devices % count == 0)


def _of_remat(
    config: ConfigDict,
    target: Target,
    task: str,
    sizes: Sequence[tuple[int, int]],
    remat: str,
    fsdp: int,
    best: float,
) -> Iterator[Try]:
    """One row, two, as many as should fit, and fewer or more than that."""
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.model.remat = remat
        changed.mesh.fsdp, changed.mesh.data = fsdp, -1
    trainer = runs.make_trainer(changed, target.mesh(changed), abstract=True)

    def attempt(rows: int) -> Try:
        parts = rows_of(changed, task, rows)
        programs = [Program(task, size, parts) for size in sizes]
        reports = tuple(compiled(changed, trainer, one, target) for one in programs)
        return Try(rows, remat, fsdp, reports)

    first = attempt(1)
    yield first
    # Later choices do more work for the same rows: memory is all that they can win by.
    if not first.fits or first.ceiling <= best:
        return
    second = attempt(2)
    yield second
    if not second.fits:
        return
    a_row = max(second.total - first.total, 1)
    expected = 2 + int((target.chip.memory - second.total) // a_row)
    rows = max(3, min(expected, MOST_ROWS))
    one = attempt(rows)
    yield one
    if one.fits:
        before = second
        while one.fits and one.speed > before.speed and rows < MOST_ROWS:
            rows = min(rows + max(1, rows // 4), MOST_ROWS)
            before, one = one, attempt(rows)
            yield one
    else:
        while not one.fits and rows > 3:
            rows -= max(1, rows // 8)
            one = attempt(rows)
            yield one


def _line(one: Try) -> str:
    said = f"{one.speed:.2f} images/s a chip" if one.fits else "does not fit"
    return f"rows {one.rows}, remat {one.remat}, fsdp {one.fsdp}: {said}"


def _as_dict(one: Try) -> dict:
    values = {"rows": one.rows, "remat": one.remat, "fsdp": one.fsdp, "fits": one.fits}
    values["images_per_second"] = one.speed if one.fits else None
    return values | {"reports": [report.as_dict() for report in one.reports]}


def _show(tries: Sequence[Try], best: Try | None) -> None:
    table = Table(title="a chip", title_justify="left")
    for name in ("rows", "remat", "fsdp", "total GB", "TFLOP", "GB", "ms", "bound", "images/s", ""):
        table.add_column(name, justify="right")
    for one in tries:
        cells = [str(one.rows), one.remat, str(one.fsdp)]
        cells.append(f"{one.total / 1e9:.2f}" if one.total else "?")
        if one.fits:
            slowest = max(one.reports, key=lambda report: report.roofline_seconds)
            cells += [f"{slowest.flops / 1e12:.2f}", f"{slowest.bytes / 1e9:.0f}"]
            cells += [f"{1e3 * slowest.roofline_seconds:.0f}", slowest.bound, f"{one.speed:.2f}"]
            cells.append("best" if one is best else "")
        else:
            cells += [""] * 5 + ["does not fit"]
        table.add_row(*cells)
    Console().print(table)
