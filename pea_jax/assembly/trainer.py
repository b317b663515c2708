"""What a config makes: the frozen models, the data, the adapter and the train step, on a mesh."""

import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pea_jax.assembly.data_factory import open_loader, open_source
from pea_jax.assembly.model_factory import model_dtype
from pea_jax.data import buckets
from pea_jax.data.read import plan
from pea_jax.data.read.loader import Loader
from pea_jax.diffusion.schedule import Schedule
from pea_jax.distill.batch import MOMENTS, PIXELS, check_rows, fields
from pea_jax.distill.losses import DistillSettings
from pea_jax.distill.state import TrainState, init_train_state, split_networks
from pea_jax.distill.step import TrainStep, jit_train_step, make_train_step
from pea_jax.inference.pipeline import Pipeline
from pea_jax.models.adapter import Adapter, AdapterConfig
from pea_jax.runtime import chips, parallel, storage
from pea_jax.weights.adapters import check_fit, load_adapter, read_adapter_config
from pea_jax.weights.bases import load_base, read_base_config
from pea_jax.weights.language import load_language_encoder, read_language_config


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The train step and all of its arguments but the batch, on the mesh; only `state` changes.

    Attributes:
        mesh: of all devices.
        state: before the first step.
        frozen: weights of the frozen networks and the empty prompt's tokens, an argument of `step`.
        step: (state, frozen, batch, key) -> (state, metrics), compiled when it is first called.
        key: of the run; the step folds its number in.
        learning_rate: of a step, counted from 0.
        pipeline: for sample grids, with the same frozen weights.
        adapter: the shape of what is trained.
        picture: what batches hold of pictures, `parts.PIXELS` or `parts.MOMENTS`.
    """

    mesh: Mesh
    state: TrainState
    frozen: Mapping[str, Any]
    step: TrainStep
    key: jax.Array | jax.ShapeDtypeStruct
    learning_rate: optax.Schedule
    pipeline: Pipeline
    adapter: AdapterConfig
    picture: str


@dataclasses.dataclass(frozen=True)
class Run(Trainer):
    """Everything that the loop needs.

    Attributes:
        loader: of batches, before the first.
    """

    loader: Loader


def build(config: ConfigDict) -> Run:
    """Load and place all that training needs; what does not fit is refused before weights are read.

    Raises:
        ValueError: a config that cannot be, or does not fit the models or the data set.
    """
    mesh = parallel.make_mesh(config.mesh.data, config.mesh.fsdp)
    check(config, parallel.data_shards(mesh))
    _check_sizes(config)
    source = open_source(config, parallel.platform(mesh))
    trainer = make_trainer(config, mesh)
    loader = open_loader(
        config,
        source,
        batch_rows(config, parallel.data_shards(mesh)),
        native_tokenizer=trainer.pipeline.language.tokenizer,
        english_tokenizer=trainer.pipeline.base.tokenizer,
        shard_index=parallel.process_index(),
        shard_count=parallel.process_count(),
    )
    return Run(
        **{field.name: getattr(trainer, field.name) for field in dataclasses.fields(trainer)},
        loader=loader,
    )


def make_trainer(config: ConfigDict, mesh: Mesh, *, abstract: bool = False) -> Trainer:
    """The train step of a config with its arguments.

    Args:
        config: see configs/base.py.
        mesh: of devices, which an abstract trainer need not have at hand.
        abstract: the arguments are shapes with shardings in place of arrays: no weights are read,
            nothing is computed, and the step can be lowered and compiled.

    Raises:
        ValueError: values that cannot be, or models that don't fit each other.
    """
    distill = DistillSettings(**config.distill)
    optimizer = config.optim.to_dict()
    ema_decay = optimizer.pop("ema_decay")
    decay_steps = optimizer.pop("decay_steps") or None
    tx, learning_rate = optimizer.make_optimizer(**optimizer, decay_steps=decay_steps)
    adapter_config = _adapter_config(config, abstract)

    dtype = jnp.dtype(model_dtype(config.model.dtype, parallel.platform(mesh)))
    base = load_base(
        config.model.base,
        dtype=dtype,
        mesh=mesh,
        attention=config.model.attention,
        remat=config.model.remat,
        abstract=abstract,
    )
    language = load_language_encoder(
        config.model.language_encoder,
        dtype=dtype,
        mesh=mesh,
        max_length=config.model.language_max_length,
        abstract=abstract,
    )

    whole = parallel.replicated(mesh)
    init_key, key = jax.random.split(jax.random.key(config.seed))
    if config.adapter.init_from:
        adapter = load_adapter(storage.local(config.adapter.init_from, "adapter.init_from"))
    else:
        adapter = Adapter(adapter_config, rngs=nnx.Rngs(init_key))
    ids, mask = language.tokenizer([""])
    english_ids, english_mask = base.tokenizer([""])
    empty = {"ids": ids, "mask": mask, "english_ids": english_ids, "english_mask": english_mask}
    if abstract:
        adapter, empty, key = jax.eval_shape(lambda *small: small, adapter, empty, key)
    networks, params, frozen = split_networks(
        unet=base.unet,
        vae=base.vae,
        text_encoder=base.text_encoder,
        language_encoder=language.tower,
        adapter=adapter,
        empty=parallel.place(empty, whole),
    )
    begin = functools.partial(init_train_state, tx=tx, ema=ema_decay > 0)
    state = jax.eval_shape(begin, params) if abstract else begin(params)
    schedule = Schedule.from_dict(base.schedule)
    step = make_train_step(
        networks,
        schedule,
        distill,
        tx,
        ema_decay=ema_decay,
        accumulation_steps=config.train.accumulation_steps,
        languages=len(config.data.languages),
        picture=_picture(config),
    )
    return Trainer(
        mesh=mesh,
        state=parallel.place(state, whole),
        frozen=frozen,
        step=jit_train_step(step, mesh, gathering=("unet",)),
        key=parallel.place(key, whole),
        learning_rate=learning_rate,
        pipeline=Pipeline(base, language, adapter, mesh),
        adapter=adapter_config,
        picture=_picture(config),
    )


def batch_shapes(
    trainer: Trainer, rows: Mapping[str, int], size: tuple[int, int]
) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """The shapes, with shardings, of a batch that the loader would make.

    Args:
        trainer: its empty prompt has the lengths of the texts.
        rows: of each part, over all devices; one without rows is left out.
        size: height and width of the pictures, in pixels.
    """
    sharding = parallel.batch_sharding(trainer.mesh)
    latent = trainer.pipeline.latent_shape(*size)
    forms = {PIXELS: ((*size, 3), np.uint8), MOMENTS: ((2, *latent), np.float32)}
    forms |= {"time_ids": ((6,), np.int32), "language": ((), np.int32)}
    forms |= {name: (text.shape[1:], np.int32) for name, text in trainer.frozen["empty"].items()}
    return {
        part: {
            name: jax.ShapeDtypeStruct((count, *forms[name][0]), forms[name][1], sharding=sharding)
            for name in fields(part, trainer.picture)
        }
        for part, count in rows.items()
        if count
    }


def picture_sizes(config: ConfigDict) -> list[tuple[int, int]]:
    """Height and width of the pictures that a run may train on: one a step."""
    sizes = [(bucket[0], bucket[1]) for bucket in config.data.buckets]
    return sizes or [(config.data.image_size,) * 2]


def model_flops(config: ConfigDict, mesh: Mesh) -> Callable[[tuple[int, int]], float | None]:
    """Counts, in the background, the operations of a step that a perfect program would compute.

    They are those of the whole batch, over all devices, as the step is written: without what remat
    computes again, and with those of attention that a kernel hides. A picture that lies takes as
    many as one that stands.

    Returns:
        What gives the number for a size of `picture_sizes` once it is known, None before, and None
        for ever on devices whose peak is not known (`chips`), where it would serve for nothing.
    """
    counted: dict[tuple[int, ...], float] = {}
    if chips.find(mesh.devices.flat[0].device_kind) is None:
        return lambda size: None
    plain = config.copy_and_resolve_references()
    plain.model.attention, plain.model.remat, plain.train.accumulation_steps = "xla", "none", 1

    def count() -> None:
        trainer = make_trainer(plain, mesh, abstract=True)
        rows = batch_rows(plain, parallel.data_shards(mesh))
        for size in dict.fromkeys(tuple(sorted(size)) for size in picture_sizes(config)):
            batch = batch_shapes(trainer, rows, size)
            lowered = trainer.step.lower(trainer.state, trainer.frozen, batch, trainer.key)
            counted[size] = lowered.cost_analysis()["flops"]

    threading.Thread(target=count, daemon=True).start()
    return lambda size: counted.get(tuple(sorted(size)))


def _check_sizes(config: ConfigDict) -> None:
    """Refuse pictures that the base model's VAE does not take."""
    factor = read_base_config(config.model.base).vae.downsampling_factor
    wrong = [
        buckets.name(size)
        for size in picture_sizes(config)
        if any(side < 1 or side % factor for side in size)
    ]
    if wrong:
        field = "data.buckets" if config.data.buckets else "data.image_size"
        raise ValueError(
            f"{field}: expected heights and widths that are multiples of {factor}, the VAE's "
            f"downsampling factor, got {', '.join(wrong)}"
        )


def check(config: ConfigDict, data_shards: int) -> None:
    """Refuse numbers that cannot be, all of them in one raise.

    Args:
        config: see configs/base.py.
        data_shards: devices that a batch is split over.
    """
    settings, data = config.train, config.data
    problems = [
        f"train.{name}: expected at least 1, got {settings[name]}"
        for name in ("steps", "accumulation_steps", "log_every", "save_every", "keep")
        if settings[name] < 1
    ]
    if settings.sample_every < 0:
        problems.append(f"train.sample_every: expected 0 or more, got {settings.sample_every}")
    if settings.sample_every > 0 and not settings.sample_prompts:
        problems.append("train.sample_prompts: expected a prompt or more, or train.sample_every 0")
    if not 0 <= data.native_batch_size <= data.batch_size or data.batch_size < 1:
        problems.append(
            f"data.native_batch_size: expected 0 to data.batch_size = {data.batch_size}, "
            f"got {data.native_batch_size}"
        )
    if data.native_batch_size and not config.distill.hybrid:
        problems.append(
            "data.native_batch_size: without distill.hybrid every row is parallel, expected 0, "
            f"got {data.native_batch_size}"
        )
    problems += plan.config_problems(data.buckets, data.crop, data.languages, data.language_weights)
    if problems:
        raise ValueError("; ".join(problems))
    check_rows(batch_rows(config, data_shards), data_shards, settings.accumulation_steps)


def batch_rows(config: ConfigDict, data_shards: int) -> dict[str, int]:
    """Rows of a step, native and parallel, over all devices."""
    data = config.data
    times = data_shards if data.per_device else 1
    native = data.native_batch_size * times
    return {"native": native, "parallel": data.batch_size * times - native}


def _picture(config: ConfigDict) -> str:
    """What batches hold of pictures."""
    return MOMENTS if config.data.latents else PIXELS


def _adapter_config(config: ConfigDict, published_too: bool) -> AdapterConfig:
    """The shape of the adapter between the two models, from their small files alone."""
    base = read_base_config(config.model.base, published_too=published_too)
    unet = base.unet
    if unet.in_channels != base.vae.latent_channels:
        raise ValueError(
            f"{config.model.base}: expected a text-to-image UNet, got one with {unet.in_channels} "
            "channels in, for inpainting; an adapter of its text-to-image base fits it"
        )
    width = read_language_config(config.model.language_encoder, published_too=published_too).width
    if not config.adapter.init_from:
        return AdapterConfig(
            input_width=width,
            hidden_width=config.adapter.hidden_width,
            output_width=unet.cross_attention_dim,
            projector_layers=config.adapter.projector_layers,
            pooled_width=unet.pooled_width,
        )
    given, _ = read_adapter_config(storage.local(config.adapter.init_from, "adapter.init_from"))
    check_fit(
        given,
        language_width=width,
        cross_attention_dim=unet.cross_attention_dim,
        pooled_width=unet.pooled_width,
        name=config.adapter.init_from,
    )
    return given
