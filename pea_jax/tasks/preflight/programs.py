"""The programs of a run, compiled from shapes for devices that need not be here."""

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pea_jax.assembly import trainer as runs
from pea_jax.assembly.model_factory import sample_settings
from pea_jax.runtime import parallel
from pea_jax.runtime.chips import Chip
from pea_jax.tasks.preflight import roofline, topology
from pea_jax.tasks.preflight.roofline import Report

TASKS = ("train", "sample")

#: Counts in the key of kept reports: raise it when what is in a report changes.
_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Target:
    """What is compiled for.

    Attributes:
      topology: as given.
      devices: all of them.
      chip: what one can do; None where that is not known.
      kept: the folder of earlier reports; None keeps none.
    """

    topology: str
    devices: Sequence[jax.Device]
    chip: Chip | None
    kept: Path | None

    def mesh(self, config: ConfigDict) -> Mesh:
        """Of all the devices, as the config splits them."""
        return parallel.make_mesh(config.mesh.data, config.mesh.fsdp, self.devices)


@dataclasses.dataclass(frozen=True)
class Program:
    """A program that is to be compiled.

    Attributes:
      task: of `TASKS`.
      size: height and width of the pictures, in pixels.
      rows: of the batch on one chip, by part.
    """

    task: str
    size: tuple[int, int]
    rows: Mapping[str, int]

    @property
    def name(self) -> str:
        """For people: "train 640x640, 15 rows a chip (3 native)"."""
        total = sum(self.rows.values())
        native = f" ({self.rows['native']} native)" if self.rows.get("native") else ""
        return f"{self.task} {self.size[0]}x{self.size[1]}, {total} rows a chip{native}"


def compiled(config: ConfigDict, trainer: runs.Trainer, program: Program, target: Target) -> Report:
    """Compiles a program, unless it was before, and reads what it needs."""
    shards = parallel.data_shards(trainer.mesh)
    lowered, batch, trips = _lower(config, trainer, program, shards)
    state = trainer.state if program.task == "train" else trainer.state.params
    known: dict[str, Any] = {
        "chip": target.chip,
        "arguments": {"weights": trainer.frozen, "state": state, "batch": batch},
        "rows": sum(program.rows.values()),
    }

    def compile_() -> Report:
        start = time.perf_counter()
        here = target.topology == topology.LOCAL
        try:
            with contextlib.nullcontext() if here else topology.kept_nowhere():
                done = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if not roofline.is_out_of_memory(error):
                raise
            seconds = time.perf_counter() - start
            return roofline.refused(error, lowered, shards=shards, compile_seconds=seconds, **known)
        seconds = time.perf_counter() - start
        return roofline.read(done, compile_seconds=seconds, trips=trips, **known)

    return _kept(target, (lowered.as_text(), trips), compile_)


def rows_of(config: ConfigDict, task: str, rows: int) -> dict[str, int]:
    """So many rows by part, as near to the config's proportion of native ones as they can be."""
    if task == "sample":
        return {"prompts": rows}
    native = round(rows * config.data.native_batch_size / config.data.batch_size)
    return {"native": native, "parallel": rows - native}


def _lower(
    config: ConfigDict, trainer: runs.Trainer, program: Program, shards: int
) -> tuple[jax.stages.Lowered, Any, dict[int, int]]:
    """The program, its batch, and how often its loops run."""
    trainer.pipeline.latent_shape(*program.size)  # refuses sizes that cannot be
    if program.task == "train":
        rows = {part: count * shards for part, count in program.rows.items()}
        batch = runs.batch_shapes(trainer, rows, program.size)
        lowered = trainer.step.lower(trainer.state, trainer.frozen, batch, trainer.key)
        return lowered, batch, {}
    height, width = program.size
    settings = dataclasses.replace(sample_settings(config), height=height, width=width)
    rows = program.rows["prompts"] * shards
    batch = trainer.pipeline.batch_shapes(settings, rows)
    # The rows of a plan that are no steps cost nothing.
    trips = {len(trainer.pipeline.plan(settings).active): settings.steps}
    return trainer.pipeline.lower(settings, rows), batch, trips


def _compiler_settings() -> dict[str, Any]:
    """What someone asked of the compiler: other settings give another program."""
    names = ("exec_time_optimization_effort", "memory_fitting_effort", "optimization_level")
    settings = {name: str(getattr(jax.config, f"jax_{name}")) for name in names}
    settings |= {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    return {name: value for name, value in settings.items() if value not in ("", "0.0", "UNKNOWN")}


def _kept(target: Target, program: tuple[str, Any], make: Callable[[], Report]) -> Report:
    """The report of this very program that an earlier call made, or a new one."""
    if target.kept is None:
        return make()
    told = (_VERSION, jax.__version__, topology.compiler(), target.topology, target.chip, *program)
    told += tuple(_compiler_settings().items())
    file = target.kept / f"{hashlib.sha256(repr(told).encode()).hexdigest()}.json"
    if file.is_file():
        return Report.from_dict(json.loads(file.read_text()))
    report = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(report.as_dict()))
    partial.replace(file)
    return report
