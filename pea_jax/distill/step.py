"""The train step: student and teacher through one frozen UNet, gradients to the adapter alone.

    pixels -> VAE posterior, or its moments as they were kept -> latents -> noisy latents x_t
    native caption  -> language encoder -> adapter -> UNet(x_t) -> prediction, features     student
    English caption -> base text encoder           -> UNet(x_t) -> prediction, features     teacher

Whatever does not depend on the adapter (`given`) is computed outside the differentiated function,
so no gradient can reach the teacher, the encoders or the VAE. The student's gradient runs back
through the UNet to the tokens, and not into its weights.
"""

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
from pea_jax.distill.batch import NATIVE, PARALLEL, PARTS, PIXELS, Layout, count_rows
from pea_jax.distill.frozen_forward import Batch, Frozen, Given, drop, give
from pea_jax.distill.losses import DistillSettings, Metrics, feature_errors, squared_error, total
from pea_jax.distill.state import Networks, Params, TrainState
from pea_jax.models.conditioning import Conditioning
from pea_jax.runtime import parallel

LossAndGradient = Callable[..., tuple[Float[Array, ""], Metrics, Params]]
TrainStep = Callable[..., tuple[TrainState, Metrics]]


def make_loss_and_gradient(
    networks: Networks,
    schedule: Schedule,
    settings: DistillSettings,
    *,
    accumulation_steps: int = 1,
    languages: int = 1,
    picture: str = PIXELS,
) -> LossAndGradient:
    """The pure function behind the step.

    Args:
        networks: of `split_networks`.
        schedule: the base model's.
        settings: the choices of the method.
        accumulation_steps: slices that each device's rows are computed in, one after another. The
            sums are the same; the activations are of one slice.
        languages: how many the rows are in; the metrics tell several apart.
        picture: what batches hold of pictures, `parts.PIXELS` or `parts.MOMENTS`; with the latter
            the VAE's encoder is no part of the program.

    Returns:
        (params, frozen, batch, key, *, data_shards=1) -> (loss, metrics, gradient), with the
        arguments of `make_train_step`'s function, but that `key` is of this very step; `draws.draw`
        tells what becomes of it.
    """

    def loss_and_gradient(
        params: Params,
        frozen: Frozen,
        batch: Batch,
        key: PRNGKeyArray,
        *,
        data_shards: int = 1,
    ) -> tuple[Float[Array, ""], Metrics, Params]:
        rows = count_rows(
            batch,
            frozen["empty"],
            hybrid=settings.hybrid,
            data_shards=data_shards,
            slices=accumulation_steps,
            picture=picture,
        )
        learning = {name: count for name, count in rows.items() if _learns(name, settings)}
        if not learning:
            raise ValueError(f"batch: no term of {settings} applies to its rows, {rows}")
        batch_size = sum(rows.values())
        numbered = {name: {**batch[name], "place": jnp.arange(rows[name])} for name in learning}
        compute = functools.partial(
            of_rows,
            params,
            key=key,
            data_shards=data_shards,
            batch_size=batch_size,
        )
        if accumulation_steps == 1:
            return compute(frozen, numbered)
        slices = parallel.cut(numbered, accumulation_steps, data_shards)

        def add(so_far: Any, rows: Batch) -> tuple[Any, None]:
            # As if the weights were of this slice: what each of them gathers is not gathered before
            # the loop and kept.
            unet, rows = jax.lax.optimization_barrier((frozen["unet"], rows))
            return jax.tree.map(jnp.add, so_far, compute({**frozen, "unet": unet}, rows)), None

        form = jax.eval_shape(compute, frozen, jax.tree.map(lambda leaf: leaf[0], slices))
        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, form), slices)[0]

    def of_rows(
        params: Params,
        frozen: Frozen,
        batch: Batch,
        *,
        key: PRNGKeyArray,
        data_shards: int,
        batch_size: int,
    ) -> tuple[Float[Array, ""], Metrics, Params]:
        """What some of the step's rows, with their places in it, add to all three."""
        learning = {name: len(batch[name]["place"]) for name in PARTS if name in batch}
        layout = Layout(learning, data_shards)
        unet = nnx.merge(networks.unet, frozen["unet"])
        given = give(networks, schedule, settings, layout, unet, frozen, batch, key, picture)
        # The student begins when the teacher has ended: weights that each of them gathers are not
        # kept from the one to the other, nor are the activations of both at once.
        weights, given = jax.lax.optimization_barrier((frozen["unet"], given))
        unet = nnx.merge(networks.unet, weights)

        def loss(params: Params) -> tuple[Float[Array, ""], Metrics]:
            conditioning = _student(nnx.merge(networks.adapter, params), given)
            prediction, features = unet(given.noisy, given.timesteps, conditioning, given.added)

            terms: dict[str, Any] = {}
            if settings.diffuses and not settings.hybrid:
                terms["native"] = squared_error(prediction, given.target)
            elif settings.diffuses and NATIVE in learning:
                predicted, wanted = layout.take((prediction, given.target), NATIVE)
                terms["native"] = squared_error(predicted, wanted)
            if given.teacher is not None:
                predicted, seen = layout.take((prediction, features), PARALLEL)
                if settings.output_weight:
                    terms["output"] = squared_error(predicted, given.teacher[0])
                if settings.feature_weight:
                    terms["features"] = feature_errors(seen, given.teacher[1])
            return total(
                settings,
                batch_size,
                **terms,
                languages={part: batch[part]["language"] for part in learning},
                language_count=languages,
            )

        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return value, metrics, gradient

    return loss_and_gradient


def make_train_step(
    networks: Networks,
    schedule: Schedule,
    settings: DistillSettings,
    tx: optax.GradientTransformation,
    *,
    ema_decay: float = 0.0,
    accumulation_steps: int = 1,
    languages: int = 1,
    picture: str = PIXELS,
) -> TrainStep:
    """The step as a pure function; `jit_train_step` compiles it.

    Args:
        networks: of `split_networks`.
        schedule: the base model's.
        settings: the choices of the method.
        tx: the optimiser.
        ema_decay: of the moving average, if the state has one. The first steps average over fewer:
            the decay at step n, from 0, is min(ema_decay, (1 + n) / (10 + n)).
        accumulation_steps: see `make_loss_and_gradient`.
        languages: likewise.
        picture: likewise.

    Returns:
        train_step(state, frozen, batch, key, *, data_shards=1) -> (state, metrics):
        frozen: of `split_networks`.
        batch: {"native": part, "parallel": part}, a part without rows absent; a part is
            {"pixels": uint8 [b, H, W, 3], "time_ids": int32 [b, 6] (see `data.pipeline.Batch`),
            "ids": int32 [b, L], "mask": int32 [b, L], "language": int32 [b]}, and of the parallel
            part also "english_ids" and "english_mask". With `parts.MOMENTS` there is "moments" in
            place of pixels, float32 [b, 2, h, w, C]: mean and log variance, neither sampled nor
            scaled.
        key: of the whole run; the step folds its number in.
        data_shards: devices that the batch is split over; it changes no value.
        metrics: float32: those of `losses.total`, and "grad_norm" before clipping.
        It raises ValueError while tracing, for a batch that cannot be.

    Raises:
        ValueError: `ema_decay` is not in [0, 1).
    """
    if not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1), got {ema_decay}")
    loss_and_gradient = make_loss_and_gradient(
        networks,
        schedule,
        settings,
        accumulation_steps=accumulation_steps,
        languages=languages,
        picture=picture,
    )

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
    gathered whole where they are used. Left to itself, the partitioner rather splits some layers
    the way their weights are split, and sends activations from device to device.

    Args:
        train_step: of `make_train_step`.
        mesh: of `parallel.make_mesh`.
        gathering: the networks of `frozen` that gather their weights themselves, layer by layer
            (`UNet.gather`). Those of the others are whole from the step's beginning to its end.

    The state is to be on the mesh from the first call on (`parallel.place`): one that jax may still
    move is another program to it, compiled again at the second step.
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


def _learns(part: str, settings: DistillSettings) -> bool:
    """Whether any term applies to the rows of a part."""
    if not settings.hybrid:
        return True
    return settings.diffuses if part == NATIVE else settings.distils


def _student(adapter: nnx.Module, given: Given) -> Conditioning:
    """The native conditioning. The empty prompt goes through the adapter too, and teaches it."""
    conditioning = adapter(given.hidden)
    if given.dropped is None:
        return conditioning
    return drop(conditioning, adapter(given.empty_hidden), given.dropped)
