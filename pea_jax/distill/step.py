"""The train step: student and teacher through one frozen UNet, gradients to the adapter alone.

    pixels -> VAE posterior, or its stored moments -> latents -> noisy latents x_t
    native caption  -> language encoder -> adapter -> UNet(x_t) -> prediction, features     student
    English caption -> base text encoder           -> UNet(x_t) -> prediction, features     teacher

All that does not depend on the adapter (`frozen_forward`) is computed outside the differentiated
function, so no gradient can reach the teacher, the encoders or the VAE. The student's gradient runs
back through the UNet to the tokens, and not into its weights.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from pea_jax.diffusion.schedule import Schedule
from pea_jax.distill.batch import NATIVE, PARALLEL, PARTS, PIXELS, BatchLayout, count_rows
from pea_jax.distill.frozen_forward import (
    Batch,
    Frozen,
    FrozenOutputs,
    drop,
    frozen_forward,
)
from pea_jax.distill.losses import DistillSettings, Metrics, feature_errors, squared_error, total
from pea_jax.distill.state import Networks, Params, TrainState
from pea_jax.models.conditioning import Conditioning
from pea_jax.runtime import parallel

TrainStep = Callable[..., tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True, eq=False)
class LossAndGradient:
    """The pure function behind the step: (params, frozen, batch, key) -> loss, metrics, gradient.

    Attributes:
        networks: from `split_networks`.
        schedule: the base model's noise schedule.
        settings: the choices of the method.
        accumulation_steps: slices of each device's rows that are computed one after another. The
            sums are the same; the activations are those of one slice.
        languages: number of languages; with several, the metrics hold each one's loss.
        picture: what batches hold of images, `batch.PIXELS` or `batch.MOMENTS`. With moments the
            VAE's encoder is not part of the program.
    """

    networks: Networks
    schedule: Schedule
    settings: DistillSettings
    accumulation_steps: int = 1
    languages: int = 1
    picture: str = PIXELS

    def __call__(
        self,
        params: Params,
        frozen: Frozen,
        batch: Batch,
        key: PRNGKeyArray,
        *,
        data_shards: int = 1,
    ) -> tuple[Float[Array, ""], Metrics, Params]:
        """Loss, metrics and gradient; arguments as for `make_train_step`'s function.

        Here `key` is that of this very step; `noise.draw` says what it is used for.

        Raises:
            ValueError: while tracing, for a batch that does not fit the settings.
        """
        rows = count_rows(
            batch,
            frozen["empty"],
            hybrid=self.settings.hybrid,
            data_shards=data_shards,
            slices=self.accumulation_steps,
            picture=self.picture,
        )
        learning = {name: count for name, count in rows.items() if self._learns(name)}
        if not learning:
            raise ValueError(f"batch: no term of {self.settings} applies to its rows, {rows}")
        numbered = {name: {**batch[name], "place": jnp.arange(rows[name])} for name in learning}
        compute = functools.partial(
            self._of_slice, params, key=key, data_shards=data_shards, batch_size=sum(rows.values())
        )
        if self.accumulation_steps == 1:
            return compute(frozen, numbered)
        slices = parallel.cut(numbered, self.accumulation_steps, data_shards)

        def add(total: Any, rows: Batch) -> tuple[Any, None]:
            # The barrier ties the weights to this slice: otherwise all that a slice gathers would
            # be gathered before the loop and kept.
            unet, rows = jax.lax.optimization_barrier((frozen["unet"], rows))
            return jax.tree.map(jnp.add, total, compute({**frozen, "unet": unet}, rows)), None

        form = jax.eval_shape(compute, frozen, jax.tree.map(lambda leaf: leaf[0], slices))
        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, form), slices)[0]

    def _of_slice(
        self,
        params: Params,
        frozen: Frozen,
        batch: Batch,
        *,
        key: PRNGKeyArray,
        data_shards: int,
        batch_size: int,
    ) -> tuple[Float[Array, ""], Metrics, Params]:
        """What some of the step's rows add to loss, metrics and gradient."""
        learning = {name: len(batch[name]["place"]) for name in PARTS if name in batch}
        layout = BatchLayout(learning, data_shards)
        unet = nnx.merge(self.networks.unet, frozen["unet"])
        outputs = frozen_forward(
            self.networks,
            self.schedule,
            self.settings,
            layout,
            unet,
            frozen,
            batch,
            key,
            self.picture,
        )
        # The student begins when the teacher has ended: gathered weights are not kept from one to
        # the other, and the activations of both are not alive at once.
        weights, outputs = jax.lax.optimization_barrier((frozen["unet"], outputs))
        unet = nnx.merge(self.networks.unet, weights)

        def loss(params: Params) -> tuple[Float[Array, ""], Metrics]:
            conditioning = _student(nnx.merge(self.networks.adapter, params), outputs)
            student = unet(outputs.noisy, outputs.timesteps, conditioning, outputs.added)
            return total(
                self.settings,
                batch_size,
                **self._terms(layout, student, outputs),
                languages={part: batch[part]["language"] for part in learning},
                language_count=self.languages,
            )

        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return value, metrics, gradient

    def _terms(
        self, layout: BatchLayout, student: tuple[Array, dict[str, Array]], outputs: FrozenOutputs
    ) -> dict[str, Any]:
        """The errors of every term, [B], as `losses.total` takes them."""
        settings, (prediction, features) = self.settings, student
        terms: dict[str, Any] = {}
        if settings.diffuses and not settings.hybrid:
            terms["native"] = squared_error(prediction, outputs.target)
        elif settings.diffuses and NATIVE in layout.rows:
            predicted, wanted = layout.take((prediction, outputs.target), NATIVE)
            terms["native"] = squared_error(predicted, wanted)
        if outputs.teacher is not None:
            predicted, features = layout.take((prediction, features), PARALLEL)
            if settings.output_weight:
                terms["output"] = squared_error(predicted, outputs.teacher[0])
            if settings.feature_weight:
                terms["features"] = feature_errors(features, outputs.teacher[1])
        return terms

    def _learns(self, part: str) -> bool:
        """Whether any term applies to the rows of a part."""
        if not self.settings.hybrid:
            return True
        return self.settings.diffuses if part == NATIVE else self.settings.distils


def make_train_step(
    loss_and_gradient: LossAndGradient,
    tx: optax.GradientTransformation,
    *,
    ema_decay: float = 0.0,
) -> TrainStep:
    """The step as a pure function; `jit_train_step` compiles it.

    Args:
        loss_and_gradient: what is minimised.
        tx: the optimizer.
        ema_decay: decay of the moving average, if the state has one. The first steps average over
            fewer: the decay at step n, from 0, is min(ema_decay, (1 + n) / (10 + n)).

    Returns:
        train_step(state, frozen, batch, key, *, data_shards=1) -> (state, metrics):
        frozen: from `split_networks`.
        batch: {"native": part, "parallel": part}, a part without rows absent; a part is
            {"pixels": uint8 [b, H, W, 3], "time_ids": int32 [b, 6] (see `data.read.loader.Batch`),
            "ids": int32 [b, L], "mask": int32 [b, L], "language": int32 [b]}, and the parallel
            part also has "english_ids" and "english_mask". With `batch.MOMENTS` there is "moments"
            in place of pixels, float32 [b, 2, h, w, C]: mean and log variance, neither sampled nor
            scaled.
        key: random key of the run; the step folds its number in.
        data_shards: devices that the batch is split over; it changes no value.
        metrics: float32: those of `losses.total`, and "grad_norm" before clipping.
        It raises ValueError while tracing, for a batch that does not fit.

    Raises:
        ValueError: `ema_decay` is not in [0, 1).
    """
    if not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1), got {ema_decay}")

    def train_step(
        state: TrainState,
        frozen: Frozen,
        batch: Batch,
        key: PRNGKeyArray,
        *,
        data_shards: int = 1,
    ) -> tuple[TrainState, Metrics]:
        _, metrics, gradient = loss_and_gradient(
            state.params,
            frozen,
            batch,
            jax.random.fold_in(key, state.step),
            data_shards=data_shards,
        )
        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            ema = optax.incremental_update(params, ema, 1 - decay)
        metrics["grad_norm"] = optax.tree.norm(gradient)
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    return train_step


def jit_train_step(
    train_step: TrainStep, mesh: Mesh, *, gathering: Collection[str] = ()
) -> TrainStep:
    """Compiles the step for a mesh: state replicated and donated, batch split over every device.

    The frozen weights stay where they were placed, replicated or split over "fsdp", and are
    gathered where they are used. Without the constraint the partitioner splits some layers the way
    their weights are split, and sends activations from device to device.

    Args:
        train_step: from `make_train_step`.
        mesh: from `parallel.make_mesh`.
        gathering: the networks of `frozen` that gather their weights themselves, layer by layer
            (`UNet.gather`). Those of the others are whole for the whole step.

    The state must be on the mesh from the first call (`parallel.place`): with a state that jax may
    still move, the second step compiles another program.
    """
    whole = parallel.replicated(mesh)

    def step_on_mesh(
        state: TrainState, frozen: Frozen, batch: Batch, key: PRNGKeyArray
    ) -> tuple[TrainState, Metrics]:
        others = {name: part for name, part in frozen.items() if name not in gathering}
        frozen = {**frozen, **jax.lax.with_sharding_constraint(others, whole)}
        return train_step(state, frozen, batch, key, data_shards=parallel.data_shards(mesh))

    return jax.jit(
        step_on_mesh,
        in_shardings=(whole, None, parallel.batch_sharding(mesh), whole),
        out_shardings=(whole, whole),
        donate_argnums=0,
    )


def _student(adapter: nnx.Module, outputs: FrozenOutputs) -> Conditioning:
    """The native conditioning. The empty prompt passes the adapter too, and trains it."""
    conditioning = adapter(outputs.hidden)
    if outputs.dropped is None:
        return conditioning
    return drop(conditioning, adapter(outputs.empty_hidden), outputs.dropped)
