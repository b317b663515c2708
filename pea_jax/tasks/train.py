"""`pea-jax train`: distil an adapter, from the first step or from where the run was stopped.

WORKDIR/config.json, checkpoints/     to go on from; what sample, evaluate and export read
WORKDIR/metrics.jsonl, tensorboard/   loss terms, learning rate, images/s, sample grids
WORKDIR/profile/, not-finite/         what --profile traced; the rows of a step that went wrong
WORKDIR/damaged/                      checkpoints that lost something, moved out of the way
"""

import contextlib
import json
import os
import signal
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from flax import nnx
from jaxtyping import UInt8
from ml_collections import ConfigDict

from pea_jax.assembly import model_factory
from pea_jax.assembly.trainer import Run, batch_rows, build, model_flops
from pea_jax.configs import base
from pea_jax.distill.losses import BY_LANGUAGE, require_finite
from pea_jax.distill.state import TrainState
from pea_jax.evals import grid
from pea_jax.runtime import checkpoint, parallel, profiling, storage, throughput
from pea_jax.runtime.metrics import MetricWriter
from pea_jax.runtime.progress import TrainingBar
from pea_jax.runtime.storage import AnyPath

#: The folder of what `Report` writes of a step whose loss is not finite.
NOT_FINITE = "not-finite"


def train(config: ConfigDict, workdir: AnyPath, *, profile: str | None = None) -> None:
    """Train until `config.train.steps`, going on from the workdir's latest checkpoint.

    Args:
        config: see configs/base.py.
        workdir: of this run; made where it is missing.
        profile: "START:COUNT" traces COUNT steps after the first START of this sitting.

    Raises:
        ValueError: a config that cannot be, does not fit the models, or is not that of the run in
            `workdir`; nothing is written then. Or none of its checkpoints is whole.
        OSError: the workdir cannot be read or written. The latest whole checkpoint stays.
        FloatingPointError: a term of the loss is not finite; the keys of the step's rows are in
            the workdir then. The latest checkpoint stays.
        KeyboardInterrupt: after Ctrl-C, when the step under way was finished and saved.
    """
    tracing = profiling.parse(profile)
    defaults = base.get_config().to_dict()
    checkpoint.check_config(workdir, config.to_dict(), defaults=defaults)
    run = build(config)
    primary = parallel.process_index() == 0
    if primary:
        checkpoint.write_config(workdir, config.to_dict())
    settings = config.train
    with contextlib.ExitStack() as stack:
        state, loader = run.state, stack.enter_context(contextlib.closing(run.loader))
        checkpoints = stack.enter_context(
            checkpoint.Checkpointer(workdir, keep=settings.keep, keep_best=settings.keep_best)
        )
        start = checkpoints.latest_step or 0
        if start:
            state, loader = checkpoints.restore(state, loader, seed=config.seed)
            start = checkpoints.latest_step  # an earlier one, where the latest is damaged
        report = stack.enter_context(Report(run, config, workdir, start, enabled=primary))
        if start >= settings.steps:
            report.say(f"{workdir} has step {start} of {settings.steps}: nothing is left to train")
            return
        stop = stack.enter_context(StopRequest(start))
        trace = stack.enter_context(profiling.Trace(workdir, tracing, enabled=primary))
        pending = None
        for step in range(start + 1, settings.steps + 1):
            with report.waiting():
                batch = parallel.to_global(next(loader), run.mesh)
            with trace.step(step - start), report.dispatching(step):
                state, metrics = run.step(state, run.frozen, batch, run.key)
            trace.dispatched(step - start, metrics)
            # The metrics of a step are fetched while the next one is computed.
            if pending is not None:
                report.step(*pending)
            pending = step, metrics
            last = stop.due(step) or step == settings.steps
            saves = last or step % settings.save_every == 0
            samples = settings.sample_every and step % settings.sample_every == 0
            if saves or samples:
                # What is saved was seen to be finite, and is on record: a run that goes on from
                # here has every line of the metrics that an undisturbed one has.
                report.step(*pending, timed=False)
                pending = None
            if saves:
                checkpoints.save(
                    step,
                    state,
                    loader,
                    adapter=run.adapter,
                    seed=config.seed,
                    loss=report.mean_loss(),
                )
            if samples:
                report.image(step, "samples", sample_grid(run, state, config))
            if last:
                break
        checkpoints.wait()
        if step == settings.steps:
            report.say(f"trained {step} steps; {workdir} holds the adapter")
            return
        told = (
            f"stopped at step {step} of {settings.steps}, which is saved; "
            f"go on with: pea-jax train --workdir {workdir}"
        )
        if stop.signal == signal.SIGINT:
            raise KeyboardInterrupt(told)
        report.say(told)


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


class Report(contextlib.ExitStack):
    """Tells of a run: its metrics to files, its progress to the screen.

    Args:
        run: for the learning rate, the devices, and the keys of rows.
        config: see configs/base.py.
        workdir: of the run.
        start: the step that the run goes on from.
        enabled: False tells nothing (every process of a run but one).
    """

    def __init__(
        self, run: Run, config: ConfigDict, workdir: AnyPath, start: int, *, enabled: bool
    ):
        super().__init__()
        settings = config.train
        rows = sum(batch_rows(config, parallel.data_shards(run.mesh)).values())
        self._run, self._settings, self._workdir = run, settings, workdir
        self._losses: list[float] = []
        self._compiled = 0
        self._throughput = throughput.Throughput(rows, list(run.mesh.devices.flat))
        self.waiting = self._throughput.waiting
        self._languages = throughput.LanguageLosses(config.data.languages)
        self._compilations = throughput.Compilations()
        self._flops = model_flops(config, run.mesh) if enabled else lambda size: None
        self._writer = self.enter_context(MetricWriter(workdir, resumed=start, enabled=enabled))
        self._bar = self.enter_context(
            TrainingBar(
                settings.steps, rows, start=start, log_every=settings.log_every, enabled=enabled
            )
        )
        self.say, self.image = self._bar.say, self._writer.image
        devices = run.mesh.devices
        hosts = f" of {parallel.process_count()} hosts" if parallel.process_count() > 1 else ""
        self.say(f"on {devices.size} x {devices.flat[0].device_kind}{hosts}")
        if 0 < start < settings.steps:
            self.say(f"going on from step {start}")

    @contextlib.contextmanager
    def dispatching(self, step: int) -> Iterator[None]:
        """Around the call of a step: that it compiles is told, and is not of the pace."""
        count, seconds = self._compilations.count, self._compilations.seconds
        yield
        if self._compilations.count > count:
            size = "x".join(str(side) for side in self._run.loader.size(step - 1))
            self.say(f"compiled for {size} in {self._compilations.seconds - seconds:.1f} s")
            self._compiled = step

    def step(self, step: int, metrics: Mapping[str, jax.Array], *, timed: bool = True) -> None:
        """Fetch what a step measured, and tell it.

        Args:
            step: counted from 1.
            metrics: of `distill.step.make_train_step`, still on the devices.
            timed: False where no other step is under way, or something else follows this one.

        Raises:
            FloatingPointError: a value is not finite.
        """
        fetched = jax.device_get(dict(metrics))
        by_language = [fetched.pop(name) for name in BY_LANGUAGE if name in fetched]
        values = {name: float(value) for name, value in fetched.items()}
        seen = values | (self._languages.add(*by_language) if by_language else {})
        try:
            require_finite(seen, step)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error} (its rows: {self._dump(step, seen)})") from None
        self._losses.append(values["loss"])
        if step <= self._compiled:
            # The time was that of compiling the next step, or of the first run of a program.
            self._throughput.interrupt()
        if timed:
            self._throughput.step(self._run.loader.size(step - 1))
        else:
            self._throughput.interrupt()
        rate = self._throughput.rate
        self._bar.update(step, values, rate)
        if step % self._settings.log_every == 0 or step == self._settings.steps:
            values["learning_rate"] = float(self._run.learning_rate(step - 1))
            values |= self._languages.read()
            values |= self._throughput.read(self._flops) | throughput.memory()
            values["compilations"] = self._compilations.count
            values["compile_seconds"] = self._compilations.seconds
            self._writer.scalars(step, values)
            self._throughput.restart()
            self._languages.restart()
        if not timed:
            # A checkpoint may follow, and is not to be ahead of the record.
            self._writer.flush()

    def _dump(self, step: int, values: Mapping[str, float]) -> AnyPath:
        """Write which rows this process gave to a step, with what it measured; returns the file."""
        index = parallel.process_index()
        file = self._workdir / NOT_FINITE / f"{step:08d}-process-{index}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        # JSON has no NaN.
        metrics = {name: str(value) for name, value in values.items()}
        told = {"step": step, "metrics": metrics, "keys": self._run.loader.keys(step - 1)}
        storage.replace_text(file, json.dumps(told, indent=2, ensure_ascii=False) + "\n")
        return file

    def mean_loss(self) -> float:
        """Of the steps since the last call."""
        losses, self._losses = self._losses, []
        return float(np.mean(losses))


class StopRequest:
    """Ctrl-C and SIGTERM ask for an orderly end, on one process of several for all of them.

    Alone, the second of them ends the process at once.

    Args:
        start: the step that the run goes on from.

    Attributes:
        signal: the one that came, None before.
    """

    def __init__(self, start: int) -> None:
        self._start = start
        self.signal: int | None = None

    def __enter__(self) -> "StopRequest":
        # Of several processes SIGTERM is jax's, which tells all of them of it (`due`).
        numbers = [signal.SIGINT]
        if not parallel.is_distributed():
            numbers.append(signal.SIGTERM)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def due(self, step: int) -> bool:
        """Whether the run ends with this step; to be called once a step, by every process."""
        if not parallel.is_distributed():
            return self.signal is not None
        if self.signal is None and parallel.preempted(step - self._start):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def _note(self, number: int, frame: object) -> None:
        del frame
        if parallel.is_distributed():
            signal.raise_signal(signal.SIGTERM)
        elif self.signal is not None:
            # Nothing is lost: a checkpoint is in its place when it is whole, and not before.
            os._exit(128 + number)
        else:
            self.signal = number
        # Not through print, which a signal may have interrupted.
        os.write(2, b"\nstopping after this step (Ctrl-C again: at once)\n")
