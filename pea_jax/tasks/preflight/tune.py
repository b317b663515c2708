"""The search of `pea-jax preflight --tune` for the fastest rows per chip and remat.

For each remat, two small programs predict the rows that fit, assuming linear memory. That many are
compiled, and fewer where they do not fit after all. More may fit, because the compiler recomputes
some values where memory gets short: a quarter more is tried while that fits and is faster. A remat
that could not win even if arithmetic were its only limit is dropped early. Where not even one row
fits, the frozen weights are split further.
"""

import dataclasses
import functools
import json as json_
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Column, Table

from pea_jax.assembly import trainer as runs
from pea_jax.models.unet.unet import REMAT
from pea_jax.tasks.preflight.roofline import Cost
from pea_jax.tasks.preflight.workloads import Target, Workload, measure, rows_of

#: Rows per chip; more gain nothing that a roofline could show.
MOST_ROWS = 256


@dataclasses.dataclass(frozen=True)
class Trial:
    """One compiled choice.

    Attributes:
      rows: per chip.
      remat: `model.remat`.
      fsdp: `mesh.fsdp`.
      costs: one per image size.
    """

    rows: int
    remat: str
    fsdp: int
    costs: tuple[Cost, ...]

    @property
    def fits(self) -> bool:
        """Whether all sizes fit."""
        return all(cost.fits for cost in self.costs)

    @property
    def total(self) -> int:
        """Bytes of the largest size; 0 where the compiler does not report them."""
        return max(cost.total for cost in self.costs)

    @property
    def speed(self) -> float:
        """Images per second and chip at the roofline, with all sizes equally frequent."""
        return sum(cost.rows for cost in self.costs) / sum(
            cost.roofline_seconds for cost in self.costs
        )

    @property
    def ceiling(self) -> float:
        """The speed if arithmetic were the only limit; more rows cannot exceed it."""
        return sum(cost.rows for cost in self.costs) / sum(
            cost.seconds["compute"] for cost in self.costs
        )

    def overrides(self, config: ConfigDict, task: str, devices: int) -> list[str]:
        """The flags of this choice."""
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
) -> Trial:
    """Print every compiled choice, and the fastest that fits.

    Raises:
      ValueError: the chip's speed is unknown, or nothing fits.
    """
    if target.chip is None:
        kind = target.devices[0].device_kind
        raise ValueError(f"--tune: the memory and the speed of a {kind!r} are not known")
    trials = []
    for one in _trials(config, target, task, sizes):
        trials.append(one)
        if not json:
            print(_line(one), flush=True)
    fitting = [one for one in trials if one.fits]
    best = max(fitting, key=lambda one: one.speed, default=None)
    flags = best.overrides(config, task, len(target.devices)) if best else []
    if json:
        result = {"tries": [_as_dict(one) for one in trials], "best": best and _as_dict(best)}
        print(json_.dumps(result | {"overrides": flags}))
    else:
        _show(trials, best)
    if best is None:
        raise ValueError(
            f"nothing fits: not even one row a chip of {target.chip.memory / 1e9:.1f} GB"
        )
    if not json:
        print(f"fastest that fits: {' '.join(flags)}")
    return best


def _trials(
    config: ConfigDict, target: Target, task: str, sizes: Sequence[tuple[int, int]]
) -> Iterator[Trial]:
    best = 0.0
    for fsdp in _splits(config, target):
        for remat in REMAT if task == "train" else (config.model.remat,):
            changed = config.copy_and_resolve_references()
            with changed.unlocked():
                changed.model.remat = remat
                changed.mesh.fsdp, changed.mesh.data = fsdp, -1
            trainer = runs.make_trainer(changed, target.mesh(changed), abstract=True)
            attempt = functools.partial(_attempt, changed, trainer, target, task, sizes)
            for one in _of_remat(attempt, target.chip.memory, best):
                if one.fits:
                    best = max(best, one.speed)
                yield one
        if best:
            return


def _splits(config: ConfigDict, target: Target) -> Iterator[int]:
    """Values of mesh.fsdp: the config's own first, then larger ones that divide the devices."""
    devices = len(target.devices)
    own = target.mesh(config).shape["fsdp"]
    yield own
    yield from (count for count in (4, 16) if count > own and devices % count == 0)


def _attempt(
    config: ConfigDict,
    trainer: runs.Trainer,
    target: Target,
    task: str,
    sizes: Sequence[tuple[int, int]],
    rows: int,
) -> Trial:
    parts = rows_of(config, task, rows)
    costs = [measure(config, trainer, Workload(task, size, parts), target) for size in sizes]
    return Trial(rows, config.model.remat, config.mesh.fsdp, tuple(costs))


def _of_remat(attempt: Callable[[int], Trial], memory: float, best: float) -> Iterator[Trial]:
    """One row, two, the predicted number, and fewer or more than that."""
    first = attempt(1)
    yield first
    # Later choices do more work for the same rows: they can only gain memory.
    if not first.fits or first.ceiling <= best:
        return
    second = attempt(2)
    yield second
    if not second.fits:
        return
    a_row = max(second.total - first.total, 1)
    expected = 2 + int((memory - second.total) // a_row)
    before, one = second, attempt(max(3, min(expected, MOST_ROWS)))
    yield one
    if not one.fits:
        while not one.fits and one.rows > 3:
            one = attempt(one.rows - max(1, one.rows // 8))
            yield one
        return
    while one.fits and one.speed > before.speed and one.rows < MOST_ROWS:
        more = one.rows + max(1, one.rows // 4)
        before, one = one, attempt(min(more, MOST_ROWS))
        yield one


def _line(one: Trial) -> str:
    speed = f"{one.speed:.2f} images/s a chip" if one.fits else "does not fit"
    return f"rows {one.rows}, remat {one.remat}, fsdp {one.fsdp}: {speed}"


def _as_dict(one: Trial) -> dict[str, Any]:
    values = {"rows": one.rows, "remat": one.remat, "fsdp": one.fsdp, "fits": one.fits}
    values["images_per_second"] = one.speed if one.fits else None
    return values | {"reports": [cost.as_dict() for cost in one.costs]}


def _show(trials: Sequence[Trial], best: Trial | None) -> None:
    names = ("rows", "remat", "fsdp", "total GB", "TFLOP", "GB", "ms", "bound", "images/s", "")
    columns = (Column(name, justify="right") for name in names)
    table = Table(*columns, title="a chip", title_justify="left")
    for one in trials:
        cells = [str(one.rows), one.remat, str(one.fsdp)]
        cells.append(f"{one.total / 1e9:.2f}" if one.total else "?")
        if one.fits:
            slowest = max(one.costs, key=lambda cost: cost.roofline_seconds)
            cells += [f"{slowest.flops / 1e12:.2f}", f"{slowest.bytes / 1e9:.0f}"]
            cells += [f"{1e3 * slowest.roofline_seconds:.0f}", slowest.bound, f"{one.speed:.2f}"]
            cells.append("best" if one is best else "")
        else:
            cells += [""] * 5 + ["does not fit"]
        table.add_row(*cells)
    Console().print(table)
