"""The programs of a run, compiled from shapes for devices that may be absent."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pea_jax.assembly import trainer as runs
from pea_jax.assembly.model_factory import sample_settings
from pea_jax.runtime import parallel, storage
from pea_jax.runtime.chips import Chip
from pea_jax.tasks.preflight import roofline, topology
from pea_jax.tasks.preflight.roofline import Cost

TASKS = ("train", "sample")

#: Part of the key of cached costs: raise it when the content of a cost changes.
_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Target:
    """The devices to compile for.

    Attributes:
      topology: its name, as in the flag.
      devices: all of them.
      chip: the figures of one; None where unknown.
      cache: the folder of earlier costs; None caches nothing.
    """

    topology: str
    devices: Sequence[jax.Device]
    chip: Chip | None
    cache: Path | None

    def mesh(self, config: ConfigDict) -> Mesh:
        """The mesh of all devices, with the sizes of the config."""
        return parallel.make_mesh(config.mesh.data, config.mesh.fsdp, self.devices)


@dataclasses.dataclass(frozen=True)
class Workload:
    """A program by its task and sizes.

    Attributes:
      task: of `TASKS`.
      size: height and width of the images, in pixels.
      rows: of the batch on one chip, by part.
    """

    task: str
    size: tuple[int, int]
    rows: Mapping[str, int]

    @property
    def name(self) -> str:
        """The title in reports: "train 640x640, 15 rows a chip (3 native)"."""
        total = sum(self.rows.values())
        native = f" ({self.rows['native']} native)" if self.rows.get("native") else ""
        return f"{self.task} {self.size[0]}x{self.size[1]}, {total} rows a chip{native}"


def measure(config: ConfigDict, trainer: runs.Trainer, workload: Workload, target: Target) -> Cost:
    """The cost of a workload's program, compiled now or cached by an earlier call."""
    shards = parallel.data_shards(trainer.mesh)
    lowered, batch, trips = _lower(config, trainer, workload, shards)
    file = target.cache and target.cache / _file_name(target, lowered, trips)
    if file and file.is_file():
        return Cost.from_dict(json.loads(file.read_text()))
    state = trainer.state if workload.task == "train" else trainer.state.params
    cost = roofline.measure(
        lowered,
        chip=target.chip,
        arguments={"weights": trainer.frozen, "state": state, "batch": batch},
        rows=sum(workload.rows.values()),
        shards=shards,
        trips=trips,
    )
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        storage.replace_text(file, json.dumps(cost.as_dict()))
    return cost


def rows_of(config: ConfigDict, task: str, rows: int) -> dict[str, int]:
    """`rows` rows by part, as close as possible to the config's proportion of native ones."""
    if task == "sample":
        return {"prompts": rows}
    native = round(rows * config.data.native_batch_size / config.data.batch_size)
    return {"native": native, "parallel": rows - native}


def _lower(
    config: ConfigDict, trainer: runs.Trainer, workload: Workload, shards: int
) -> tuple[jax.stages.Lowered, Any, dict[int, int]]:
    """The lowered program, its batch, and the trip counts of `hlo.count`."""
    trainer.pipeline.latent_shape(*workload.size)  # refuses sizes that do not divide
    if workload.task == "train":
        rows = {part: count * shards for part, count in workload.rows.items()}
        batch = runs.batch_shapes(trainer, rows, workload.size)
        lowered = trainer.step.lower(trainer.state, trainer.frozen, batch, trainer.key)
        return lowered, batch, {}
    height, width = workload.size
    settings = dataclasses.replace(sample_settings(config), height=height, width=width)
    rows = workload.rows["prompts"] * shards
    batch = trainer.pipeline.batch_shapes(settings, rows)
    # Rows of the plan that are no steps cost nothing.
    trips = {len(trainer.pipeline.plan(settings).active): settings.steps}
    return trainer.pipeline.lower(settings, rows), batch, trips


def _compiler_settings() -> dict[str, Any]:
    """The user's settings of the compiler: other settings give another program."""
    names = ("exec_time_optimization_effort", "memory_fitting_effort", "optimization_level")
    settings = {name: str(getattr(jax.config, f"jax_{name}")) for name in names}
    settings |= {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    return {name: value for name, value in settings.items() if value not in ("", "0.0", "UNKNOWN")}


def _file_name(target: Target, lowered: jax.stages.Lowered, trips: Mapping[int, int]) -> str:
    """The name of the file that caches the cost of exactly this program."""
    key = (_VERSION, jax.__version__, topology.compiler(), target.topology, target.chip)
    key += (lowered.as_text(), trips, *_compiler_settings().items())
    return f"{hashlib.sha256(repr(key).encode()).hexdigest()}.json"
