"""`pea-jax preflight`: compile a run's programs for devices that may be absent; report what fits.

    pea-jax preflight --config configs/sdxl_zh.py --topology v5e:4x4 [--size buckets] [--batch 4]
    pea-jax preflight --config configs/sdxl_zh.py --topology v6e:4x4 --task sample
    pea-jax preflight --config configs/sdxl_zh.py --topology v5e:4x4 --tune

The programs are those of `pea-jax train` and `pea-jax sample`, from the same code, with shapes in
place of arrays: no weights and no data are read. Every number is per chip and per call.
"""

import json as json_
import re
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
from pea_jax.tasks.preflight import topology as topologies
from pea_jax.tasks.preflight.report import advice, headline, show
from pea_jax.tasks.preflight.roofline import Cost
from pea_jax.tasks.preflight.tune import Trial
from pea_jax.tasks.preflight.tune import tune as choose
from pea_jax.tasks.preflight.workloads import TASKS, Target, Workload, measure, rows_of


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
) -> list[tuple[Workload, Cost]] | Trial:
    """Compile the programs and print the cost of each.

    Args:
      config: see configs/base.py.
      workdir: unused; no weights are read.
      topology: see `preflight.topology.devices`.
      task: of `TASKS`; None is "train".
      size: of the images: "HxW" with commas between several, "buckets" for all sizes of the run, or
        "largest" for the largest of these; None is "largest", or the sampled size for sampling.
      batch: rows of one step on one chip, in the config's proportion of native ones; None takes the
        config's numbers.
      tune: search for the fastest batch and remat instead.
      json: print one JSON object in place of tables.

    Raises:
      DoesNotFitError: in one line, after everything is printed.
      ValueError: an argument is invalid, or does not fit the models.
    """
    del workdir
    task = task or "train"
    if task not in TASKS:
        raise UsageError(f"--task: expected one of {', '.join(TASKS)}, got {task!r}")
    if batch is not None and batch < 1:
        raise UsageError(f"--batch: expected 1 or more, got {batch}")
    devices = topologies.devices(topology)
    folder = config.train.compilation_cache
    cache = Path(folder).expanduser() / "preflight" if folder else None
    target = Target(topology, devices, topologies.chip(devices), cache)
    sizes = _sizes(size, config, task)
    if tune:
        return choose(config, target, task, sizes, json=json)
    workloads = [Workload(task, size, _rows(config, target, task, batch)) for size in sizes]
    trainer = runs.make_trainer(config, target.mesh(config), abstract=True)
    costs = []
    for workload in workloads:
        cost = measure(config, trainer, workload, target)
        costs.append((workload, cost))
        if not json:
            show(workload, cost, target, advice(config, workload, cost, target))
    if json:
        print(json_.dumps(as_dict(config, target, costs)))
    if misfits := [headline(*one) for one in costs if not one[1].fits]:
        raise DoesNotFitError(f"{len(misfits)} of {len(costs)} programs do not fit: {misfits[0]}")
    return costs


def as_dict(
    config: ConfigDict, target: Target, costs: Sequence[tuple[Workload, Cost]]
) -> dict[str, Any]:
    """The object that --json prints."""
    return {
        "topology": target.topology,
        "devices": len(target.devices),
        "device_kind": target.devices[0].device_kind,
        "mesh": dict(target.mesh(config).shape),
        "base": config.model.base,
        "language_encoder": config.model.language_encoder,
        "remat": config.model.remat,
        "jax": jax.__version__,
        "fits": all(cost.fits for _, cost in costs),
        "programs": [
            {
                "task": workload.task,
                "height": workload.size[0],
                "width": workload.size[1],
                "rows_by_part": dict(workload.rows),
                **cost.as_dict(),
                "advice": advice(config, workload, cost, target),
            }
            for workload, cost in costs
        ],
    }


def _sizes(text: str | None, config: ConfigDict, task: str) -> list[tuple[int, int]]:
    if text is None and task == "sample":
        settings = sample_settings(config)
        return [(settings.height, settings.width)]
    if text == "buckets":
        return checks.picture_sizes(config)
    if text in (None, "largest"):
        known = config.data.buckets or [(*size, 1.0) for size in checks.picture_sizes(config)]
        return [buckets.largest(known)]
    sizes = [re.fullmatch(r"\s*([1-9]\d*)x([1-9]\d*)\s*", word) for word in text.split(",")]
    if None in sizes:
        raise UsageError(
            "--size: expected HxW in pixels with commas between several, buckets or largest, "
            f"got {text!r}"
        )
    return [(int(height), int(width)) for height, width in (size.groups() for size in sizes)]


def _rows(config: ConfigDict, target: Target, task: str, batch: int | None) -> dict[str, int]:
    """Rows of each part on one chip."""
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
