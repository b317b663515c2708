"""`pea-jax train`: distil an adapter, from the first step or from the latest checkpoint.

WORKDIR/config.json, checkpoints/     for resuming; sample, evaluate and export read them
WORKDIR/metrics.jsonl, tensorboard/   loss terms, learning rate, images/s, sample grids
WORKDIR/profile/, not-finite/         traces of --profile; the rows of a step with a non-finite loss
WORKDIR/damaged/                      damaged checkpoints
"""

import contextlib
import signal
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from flax import nnx
from jaxtyping import UInt8
from ml_collections import ConfigDict

from pea_jax.assembly import checks, model_factory
from pea_jax.assembly.trainer import Run, build, model_flops
from pea_jax.configs import base
from pea_jax.distill.losses import BY_LANGUAGE, require_finite
from pea_jax.distill.state import TrainState
from pea_jax.evals import grid
from pea_jax.runtime import checkpoint, parallel, processes, profiling, throughput
from pea_jax.runtime.compilations import Compilations
from pea_jax.runtime.metrics import LanguageLosses, MetricWriter, write_not_finite
from pea_jax.runtime.progress import TrainingBar
from pea_jax.runtime.stopping import StopRequest
from pea_jax.runtime.storage import AnyPath


def train(config: ConfigDict, workdir: AnyPath, *, profile: str | None = None) -> None:
    """Train until `config.train.steps`, resuming from the workdir's latest checkpoint.

    Args:
        config: see configs/base.py.
        workdir: of this run; made where it is missing.
        profile: "START:COUNT" traces COUNT steps after the first START of this session.

    Raises:
        ValueError: an invalid config, one that does not fit the models, or one that differs from
            the run's in `workdir`: nothing is written then. Or none of its checkpoints is whole.
        OSError: the workdir cannot be read or written. The latest whole checkpoint stays.
        FloatingPointError: a term of the loss is not finite; the workdir then has the keys of the
            step's rows. The latest checkpoint stays.
        KeyboardInterrupt: after Ctrl-C, once the current step is finished and saved.
    """
    traced = profiling.parse(profile)
    defaults = base.get_config().to_dict()
    checkpoint.check_config(workdir, config.to_dict(), defaults=defaults)
    run = build(config)
    primary = processes.process_index() == 0
    if primary:
        checkpoint.write_config(workdir, config.to_dict())
    settings, state, loader = config.train, run.state, run.loader
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(loader))
        checkpoints = stack.enter_context(
            checkpoint.Checkpointer(workdir, keep=settings.keep, keep_best=settings.keep_best)
        )
        if checkpoints.latest_step:
            state = checkpoints.restore(state, loader, seed=config.seed)
        start = checkpoints.latest_step or 0  # after a damaged one was passed over
        log = stack.enter_context(TrainingLog(run, config, workdir, start, enabled=primary))
        if start >= settings.steps:
            log.say(f"{workdir} has step {start} of {settings.steps}: nothing is left to train")
            return
        stop = stack.enter_context(StopRequest(start))
        trace = stack.enter_context(profiling.Trace(workdir, traced, enabled=primary))
        for step in range(start + 1, settings.steps + 1):
            with log.waiting():
                batch = parallel.to_global(next(loader), run.mesh)
            with trace.step(step - start), log.dispatching(step):
                state, metrics = run.step(state, run.frozen, batch, run.key)
            trace.dispatched(step - start, metrics)
            log.dispatched(step, metrics)
            last = stop.due(step) or step == settings.steps
            saves = last or step % settings.save_every == 0
            samples = settings.sample_every and step % settings.sample_every == 0
            if saves or samples:
                log.catch_up()
            if saves:
                loss = log.mean_loss()
                checkpoints.save(
                    step, state, loader, adapter=run.adapter, seed=config.seed, loss=loss
                )
            if samples:
                log.image(step, "samples", sample_grid(run, state, config))
            if last:
                break
        checkpoints.wait()
        if step == settings.steps:
            log.say(f"trained {step} steps; {workdir} holds the adapter")
            return
        stopped = (
            f"stopped at step {step} of {settings.steps}, which is saved; "
            f"go on with: pea-jax train --workdir {workdir}"
        )
        if stop.signal == signal.SIGINT:
            raise KeyboardInterrupt(stopped)
        log.say(stopped)


def sample_grid(run: Run, state: TrainState, config: ConfigDict) -> UInt8[np.ndarray, "H W 3"]:
    """Images of `train.sample_prompts` by the adapter of `state`, as one picture."""
    graph, _ = nnx.split(run.pipeline.adapter)
    adapter = nnx.merge(graph, state.params if state.ema is None else state.ema)
    pipeline = run.pipeline.with_adapter(adapter)
    prompts = list(config.train.sample_prompts)
    batches = pipeline.batches(
        prompts, model_factory.sample_settings(config), seed=config.sample.seed
    )
    return np.asarray(grid.tile(np.concatenate(list(batches))))


class TrainingLog(contextlib.ExitStack):
    """Checks the metrics of each step and writes them to files and to the screen.

    Metrics of a step are fetched while the next step is computed.

    Args:
        run: for the learning rate, the devices, and the keys of rows.
        config: see configs/base.py.
        workdir: of the run.
        start: the step that the run resumes from.
        enabled: False writes nothing (on every process but one).
    """

    def __init__(
        self, run: Run, config: ConfigDict, workdir: AnyPath, start: int, *, enabled: bool
    ):
        super().__init__()
        settings, devices = config.train, list(run.mesh.devices.flat)
        rows = sum(checks.batch_rows(config, parallel.data_shards(run.mesh)).values())
        self._run, self._settings, self._workdir = run, settings, workdir
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self._losses: list[float] = []
        self._languages = LanguageLosses(config.data.languages)
        self._throughput = throughput.Throughput(rows, devices)
        self._compilations, self._last_compiled = Compilations(), 0
        self._flops = model_flops(config, run.mesh) if enabled else lambda size: None
        self._writer = self.enter_context(MetricWriter(workdir, resumed=start, enabled=enabled))
        self._bar = self.enter_context(
            TrainingBar(
                settings.steps, rows, start=start, log_every=settings.log_every, enabled=enabled
            )
        )
        self.say, self.image = self._bar.say, self._writer.image
        self.waiting = self._throughput.waiting
        count = processes.process_count()
        hosts = f" of {count} hosts" if count > 1 else ""
        self.say(f"on {len(devices)} x {devices[0].device_kind}{hosts}")
        if 0 < start < settings.steps:
            self.say(f"going on from step {start}")

    @contextlib.contextmanager
    def dispatching(self, step: int) -> Iterator[None]:
        """Around the dispatch of a step; a compilation is reported and kept out of the timing."""
        here = Compilations()
        yield
        if here.count:
            size = "x".join(str(side) for side in self._run.loader.size(step - 1))
            self.say(f"compiled for {size} in {here.seconds:.1f} s")
            self._last_compiled = step

    def dispatched(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """After the dispatch of a step: record the step before.

        Args:
            step: counted from 1.
            metrics: of `distill.step.make_train_step`, still on the devices.

        Raises:
            FloatingPointError: a value of the step before is not finite.
        """
        if self._pending is not None:
            self._record(*self._pending, timed=True)
        self._pending = step, metrics

    def catch_up(self) -> None:
        """Record the last step and flush the files, so that no checkpoint is ahead of the record.

        Raises:
            FloatingPointError: a value is not finite.
        """
        self._record(*self._pending, timed=False)
        self._pending = None
        self._writer.flush()

    def mean_loss(self) -> float:
        """The mean over the steps recorded since the last call."""
        losses, self._losses = self._losses, []
        return float(np.mean(losses))

    def _record(self, step: int, metrics: Mapping[str, jax.Array], *, timed: bool) -> None:
        fetched = jax.device_get(dict(metrics))
        by_language = [fetched.pop(name) for name in BY_LANGUAGE if name in fetched]
        values = {name: float(value) for name, value in fetched.items()}
        self._check(step, values | (self._languages.add(*by_language) if by_language else {}))
        self._losses.append(values["loss"])
        if not timed or step <= self._last_compiled:
            # The time includes a save or samples, a compilation, or a program's first run.
            self._throughput.interrupt()
        if timed:
            self._throughput.step(self._run.loader.size(step - 1))
        self._bar.update(step, values, self._throughput.rate)
        if step % self._settings.log_every == 0 or step == self._settings.steps:
            values["learning_rate"] = float(self._run.learning_rate(step - 1))
            values |= self._languages.read()
            values |= self._throughput.read(self._flops) | throughput.memory()
            values["compilations"] = self._compilations.count
            values["compile_seconds"] = self._compilations.seconds
            self._writer.scalars(step, values)
            self._throughput.restart()
            self._languages.restart()

    def _check(self, step: int, values: Mapping[str, float]) -> None:
        try:
            require_finite(values, step)
        except FloatingPointError as error:
            keys = self._run.loader.keys(step - 1)
            file = write_not_finite(self._workdir, step, values, keys)
            raise FloatingPointError(f"{error} (its rows: {file})") from None
