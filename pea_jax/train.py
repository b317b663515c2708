"""`pea-jax train`: distil an adapter, from the first step or from where the run was stopped.

WORKDIR/config.json, checkpoints/     to go on from; what sample, evaluate and export read
WORKDIR/metrics.jsonl, tensorboard/   loss terms, learning rate, images/s, sample grids
WORKDIR/damaged/                      checkpoints that lost something, moved out of the way
"""

import contextlib
import os
import signal
from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx
from jaxtyping import UInt8
from ml_collections import ConfigDict

from pea_jax import checkpoint, parallel
from pea_jax.distill.losses import require_finite
from pea_jax.distill.state import TrainState
from pea_jax.evals import grid
from pea_jax.metrics import MetricWriter, Throughput, TrainingBar
from pea_jax.run import Run, build
from pea_jax.sample import sample_settings
from pea_jax.storage import AnyPath


def train(config: ConfigDict, workdir: AnyPath) -> None:
    """Train until `config.train.steps`, going on from the workdir's latest checkpoint.

    Args:
        config: see configs/base.py.
        workdir: of this run; made where it is missing.

    Raises:
        ValueError: a config that cannot be, does not fit the models, or is not that of the run in
            `workdir`; nothing is written then. Or none of its checkpoints is whole.
        OSError: the workdir cannot be read or written. The latest whole checkpoint stays.
        FloatingPointError: a term of the loss is not finite. The latest checkpoint stays.
        KeyboardInterrupt: after Ctrl-C, when the step under way was finished and saved.
    """
    checkpoint.check_config(workdir, config.to_dict())
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
        stop = stack.enter_context(StopRequest())
        pending = None
        for step in range(start + 1, settings.steps + 1):
            batch = parallel.to_global(next(loader), run.mesh)
            state, metrics = run.step(state, run.frozen, batch, run.key)
            # The metrics of a step are fetched while the next one is computed.
            if pending is not None:
                report.step(*pending)
            pending = step, metrics
            last = step == settings.steps or stop.signal is not None
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
    batches = pipeline.batches(prompts, sample_settings(config), seed=config.sample.seed)
    return np.asarray(grid.tile(np.concatenate(list(batches))))


class Report(contextlib.ExitStack):
    """Tells of a run: its metrics to files, its progress to the screen.

    Args:
        run: for the learning rate.
        config: see configs/base.py.
        workdir: of the run.
        start: the step that the run goes on from.
        enabled: False tells nothing (every process of a run but one).
    """

    def __init__(
        self, run: Run, config: ConfigDict, workdir: AnyPath, start: int, *, enabled: bool
    ):
        super().__init__()
        settings, rows = config.train, config.data.batch_size
        self._learning_rate, self._settings = run.learning_rate, settings
        self._losses: list[float] = []
        self._throughput = Throughput(rows)
        self._writer = self.enter_context(MetricWriter(workdir, resumed=start, enabled=enabled))
        self._bar = self.enter_context(
            TrainingBar(
                settings.steps, rows, start=start, log_every=settings.log_every, enabled=enabled
            )
        )
        self.say, self.image = self._bar.say, self._writer.image
        if 0 < start < settings.steps:
            self.say(f"going on from step {start}")

    def step(self, step: int, metrics: Mapping[str, jax.Array], *, timed: bool = True) -> None:
        """Fetch what a step measured, and tell it.

        Args:
            step: counted from 1.
            metrics: scalars, still on the devices.
            timed: False where no other step is under way, or something else follows this one.

        Raises:
            FloatingPointError: a value is not finite.
        """
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        require_finite(values, step)
        self._losses.append(values["loss"])
        if timed:
            self._throughput.step()
        else:
            self._throughput.interrupt()
        rate = self._throughput.rate
        self._bar.update(step, values, rate)
        if step % self._settings.log_every == 0 or step == self._settings.steps:
            values["learning_rate"] = float(self._learning_rate(step - 1))
            if rate is not None:
                values["images_per_second"] = rate
            self._writer.scalars(step, values)
            self._throughput.restart()
        if not timed:
            # A checkpoint may follow, and is not to be ahead of the record.
            self._writer.flush()

    def mean_loss(self) -> float:
        """Of the steps since the last call."""
        losses, self._losses = self._losses, []
        return float(np.mean(losses))


class StopRequest:
    """Ctrl-C and SIGTERM ask for an orderly end; the second of them ends the process at once.

    Attributes:
        signal: the one that came, None before.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> "StopRequest":
        self._before = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        del frame
        if self.signal is not None:
            # Nothing is lost: a checkpoint is in its place when it is whole, and not before.
            os._exit(128 + number)
        self.signal = number
        # Not through print, which a signal may have interrupted.
        os.write(2, b"\nstopping after this step (Ctrl-C again: at once)\n")
