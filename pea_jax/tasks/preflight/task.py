"""`pea-jax preflight`: compile a run's programs for devices that need not be here: what fits.

    pea-jax preflight --config configs/sdxl_zh.py --topology v5e:4x4 [--size buckets] [--batch 4]
    pea-jax preflight --config configs/sdxl_zh.py --topology v6e:4x4 --task sample
    pea-jax preflight --config configs/sdxl_zh.py --topology v5e:4x4 --tune

The programs are those of `pea-jax train` and `pea-jax sample`, by the same code, from shapes in
place of arrays: no weights and no data are read. Every number is of one chip and one call.
"""

import json as json_
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from pea_jax.assembly import checks
from pea_jax.assembly import trainer as runs
from pea_jax.assembly.model_factory import sample_settings
from pea_jax.data import buckets
from pea_jax.inference.settings import IMAGES_PER_SHARD
from pea_jax.runtime import parallel
from pea_jax.runtime.errors import UsageError
from pea_jax.tasks.preflight import topology
from pea_jax.tasks.preflight.programs import TASKS, Program, Target, compiled, rows_of
from pea_jax.tasks.preflight.report import advice, headline, show
from pea_jax.tasks.preflight.roofline import Report
from pea_jax.tasks.preflight.tune import Try
from pea_jax.tasks.preflight.tune import tune as choose


class DoesNotFitError(ValueError):
    """A program needs more memory than a chip has."""


def preflight(
    config: ConfigDict,
    workdir: Path | None = None,
    *,
    topology: str,
    task: str | None = None,
    size: str | None = None,
    batch: int | None = None,
    tune: bool = False,
    json: bool = False,
) -> list[tuple[Program, Report]] | Try:
    """Compiles, and prints what each program needs.

    Args:
      config: see configs/base.py.
      workdir: not used: no weights are read.
      topology: see `topology.devices`.
      task: of `TASKS`; None is "train".
      size: of the pictures: "HxW" with commas between several, "buckets" for all that the run
        trains on, or "largest" for the largest of these; None is that, and in sampling the size
        that is sampled.
      batch: rows of one step on one chip, in the config's proportion of native ones; None takes the
        config's numbers.
      tune: look for the batch and the remat that are fastest, instead.
      json: print one JSON object in place of tables.

    Raises:
      DoesNotFitError: in one line, after everything was printed.
      ValueError: what was given cannot be, or does not fit the models.
    """
    del workdir
    task = task or "train"
    if task not in TASKS:
        raise UsageError(f"--task: expected one of {', '.join(TASKS)}, got {task!r}")
    if batch is not None and batch < 1:
        raise UsageError(f"--batch: expected 1 or more, got {batch}")
    target = _target(config, topology)
    sizes = _sizes(size, config, task)
    if tune:
        return choose(config, target, task, sizes, json=json)
    programs = [Program(task, size, _rows(config, target, task, batch)) for size in sizes]
    trainer = runs.make_trainer(config, target.mesh(config), abstract=True)
    reports = []
    for program in programs:
        report = compiled(config, trainer, program, target)
        reports.append((program, report))
        if not json:
            show(program, report, target, advice(config, program, report, target))
    if json:
        print(json_.dumps(as_dict(config, target, reports)))
    misfits = [headline(*one) for one in reports if not one[1].fits]
    if misfits:
        raise DoesNotFitError(f"{len(misfits)} of {len(reports)} programs do not fit: {misfits[0]}")
    return reports


def as_dict(
    config: ConfigDict, target: Target, reports: Sequence[tuple[Program, Report]]
) -> dict[str, Any]:
    """What --json prints."""
    return {
        "topology": target.topology,
        "devices": len(target.devices),
        "device_kind": target.devices[0].device_kind,
        "mesh": dict(target.mesh(config).shape),
        "base": config.model.base,
        "language_encoder": config.model.language_encoder,
        "remat": config.model.remat,
        "jax": jax.__version__,
        "fits": all(report.fits for _, report in reports),
        "programs": [
            {
                "task": program.task,
                "height": program.size[0],
                "width": program.size[1],
                "rows_by_part": dict(program.rows),
                **report.as_dict(),
                "advice": advice(config, program, report, target),
            }
            for program, report in reports
        ],
    }


def _target(config: ConfigDict, name: str) -> Target:
    devices = topology.devices(name)
    folder = config.train.compilation_cache
    kept = Path(folder).expanduser() / "preflight" if folder else None
    return Target(name, devices, topology.chip(devices), kept)


def _sizes(given: str | None, config: ConfigDict, task: str) -> list[tuple[int, int]]:
    if given is None and task == "sample":
        settings = sample_settings(config)
        return [(settings.height, settings.width)]
    if given is None:
        given = "largest"
    if given == "buckets":
        return checks.picture_sizes(config)
    if given == "largest":
        known = config.data.buckets or [(*size, 1.0) for size in checks.picture_sizes(config)]
        return [buckets.largest(known)]
    sizes = []
    for word in given.split(","):
        sides = word.strip().split("x")
        if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
            raise UsageError(
                "--size: expected HxW in pixels with commas between several, buckets or largest, "
                f"got {given!r}"
            )
        sizes.append((int(sides[0]), int(sides[1])))
    return sizes


def _rows(config: ConfigDict, target: Target, task: str, batch: int | None) -> dict[str, int]:
    """The rows of each part on one chip."""
    shards = parallel.data_shards(target.mesh(config))
    if batch is not None:
        return rows_of(config, task, batch)
    if task == "sample":
        rows = config.sample.batch_size
        return {"prompts": -(-rows // shards) if rows else IMAGES_PER_SHARD}
    rows = checks.batch_rows(config, shards)
    native, total = rows["native"], sum(rows.values())
    if native % shards == 0 and total % shards == 0:
        checks.check(config, shards)
        return {part: count // shards for part, count in rows.items()}
    per_chip = max(1, round(total / shards))
    near = rows_of(config, task, per_chip)
    raise ValueError(
        f"{shards} devices divide neither or only one of data.batch_size={total} and "
        f"data.native_batch_size={native}; nearest: --config.data.batch_size={per_chip * shards} "
        f"--config.data.native_batch_size={near['native'] * shards}, or give --batch ROWS a chip"
    )
