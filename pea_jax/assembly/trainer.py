"""Everything that training runs: models, data, adapter and the train step, on a mesh."""

import dataclasses
import functools
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pea_jax.assembly import checks, model_factory
from pea_jax.assembly.data_factory import open_loader, open_source
from pea_jax.data.read.loader import Loader
from pea_jax.diffusion.schedule import Schedule
from pea_jax.distill.batch import MOMENTS, PIXELS, fields
from pea_jax.distill.losses import DistillSettings
from pea_jax.distill.optimizer import make_optimizer
from pea_jax.distill.state import TrainState, init_train_state, split_networks
from pea_jax.distill.step import LossAndGradient, TrainStep, jit_train_step, make_train_step
from pea_jax.inference.pipeline import Pipeline
from pea_jax.models.adapter import Adapter, AdapterConfig
from pea_jax.runtime import chips, parallel, processes, storage
from pea_jax.weights.adapters import load_adapter
from pea_jax.weights.bases import BaseModel, load_base
from pea_jax.weights.language import (
    LanguageEncoder,
    export_problems,
    load_language_encoder,
    read_language_config,
)


class ExportWarning(UserWarning):
    """The adapter of this run will not be exported as a diffusers folder."""


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The train step and all of its arguments except the batch, on the mesh; only `state` changes.

    Attributes:
        mesh: all devices.
        state: before the first step.
        frozen: weights of the frozen networks and the empty prompt's tokens, an argument of `step`.
        step: (state, frozen, batch, key) -> (state, metrics), compiled when it is first called.
        key: random key of the run; the step folds its number in.
        learning_rate: by step, counted from 0.
        pipeline: for sample grids, with the same frozen weights.
        adapter: shape of the trained adapter.
        picture: the form of images in batches, `batch.PIXELS` or `batch.MOMENTS`.
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
    """Everything that the training loop needs.

    Attributes:
        loader: of batches, positioned before the first.
    """

    loader: Loader


def build(config: ConfigDict) -> Run:
    """Loads and places everything that training needs; checks the config before it reads weights.

    Raises:
        ValueError: a config that is invalid, or does not fit the models or the data set.
    """
    mesh = parallel.make_mesh(config.mesh.data, config.mesh.fsdp)
    checks.check(config, parallel.data_shards(mesh))
    checks.check_sizes(config)
    source = open_source(config, parallel.platform(mesh))
    if processes.process_index() == 0:
        for problem in export_problems(read_language_config(config.model.language_encoder)):
            message = f"pea-jax export will write the adapter, and no diffusers/: {problem}"
            warnings.warn(message, ExportWarning, stacklevel=2)
    trainer = make_trainer(config, mesh)
    loader = open_loader(
        config,
        source,
        checks.batch_rows(config, parallel.data_shards(mesh)),
        native_tokenizer=trainer.pipeline.language.tokenizer,
        english_tokenizer=trainer.pipeline.base.tokenizer,
        shard_index=processes.process_index(),
        shard_count=processes.process_count(),
    )
    return Run(
        **{field.name: getattr(trainer, field.name) for field in dataclasses.fields(trainer)},
        loader=loader,
    )


def make_trainer(config: ConfigDict, mesh: Mesh, *, abstract: bool = False) -> Trainer:
    """The train step of a config with its arguments.

    Args:
        config: see configs/base.py.
        mesh: of devices; those of an abstract trainer need not exist here.
        abstract: gives shapes with shardings in place of arrays: no weights are read, nothing is
            computed, and the step can be lowered and compiled.

    Raises:
        ValueError: values that cannot be, or models that don't fit each other.
    """
    distill = DistillSettings(**config.distill)
    tx, learning_rate, ema_decay = _optimizer(config)
    adapter_config = model_factory.adapter_config(config, allow_builtin=abstract)
    spec = model_factory.base_spec(config, parallel.platform(mesh))
    base = load_base(spec, mesh=mesh, abstract=abstract)
    language = load_language_encoder(
        config.model.language_encoder,
        dtype=spec.dtype,
        mesh=mesh,
        max_length=config.model.language_max_length,
        abstract=abstract,
    )

    init_key, key = jax.random.split(jax.random.key(config.seed))
    if config.adapter.init_from:
        adapter = load_adapter(storage.local(config.adapter.init_from, "adapter.init_from"))
    else:
        adapter = Adapter(adapter_config, rngs=nnx.Rngs(init_key))
    empty = _empty_prompt(language, base)
    if abstract:
        adapter, empty, key = jax.eval_shape(lambda *small: small, adapter, empty, key)
    whole = parallel.replicated(mesh)
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
    picture = MOMENTS if config.data.latents else PIXELS
    loss_and_gradient = LossAndGradient(
        networks,
        Schedule.from_dict(base.config.schedule),
        distill,
        accumulation_steps=config.train.accumulation_steps,
        languages=len(config.data.languages),
        picture=picture,
    )
    step = make_train_step(loss_and_gradient, tx, ema_decay=ema_decay)
    return Trainer(
        mesh=mesh,
        state=parallel.place(state, whole),
        frozen=frozen,
        step=jit_train_step(step, mesh, gathering=("unet",)),
        key=parallel.place(key, whole),
        learning_rate=learning_rate,
        pipeline=Pipeline(base, language, adapter, mesh),
        adapter=adapter_config,
        picture=picture,
    )


def _optimizer(
    config: ConfigDict,
) -> tuple[optax.GradientTransformation, optax.Schedule, float]:
    """The optimizer, its learning rate by step, and the decay of the moving average."""
    values = config.optim.to_dict()
    ema_decay = values.pop("ema_decay")
    decay_steps = values.pop("decay_steps") or None
    return *make_optimizer(**values, decay_steps=decay_steps), ema_decay


def _empty_prompt(language: LanguageEncoder, base: BaseModel) -> dict[str, Any]:
    """Token ids and masks of "", as `split_networks` takes them."""
    ids, mask = language.tokenizer([""])
    english_ids, english_mask = base.tokenizer([""])
    return {"ids": ids, "mask": mask, "english_ids": english_ids, "english_mask": english_mask}


def batch_shapes(
    trainer: Trainer, rows: Mapping[str, int], size: tuple[int, int]
) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """The shapes, with shardings, of a batch of the loader.

    Args:
        trainer: gives the lengths of the texts.
        rows: number of rows of each part, over all devices; a part without rows is left out.
        size: height and width of the images, in pixels.
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


def model_flops(config: ConfigDict, mesh: Mesh) -> Callable[[tuple[int, int]], float | None]:
    """Counts the model FLOPs of a step in the background, for the utilisation in the metrics.

    They are those of the whole batch, over all devices, as the step is written: without the
    recomputation of remat, and with attention that a kernel would hide. HxW and WxH cost the same.

    Returns:
        A function from a size of `picture_sizes` to the number: None until it is counted, and
        always None on devices whose peak FLOPs are unknown (`chips`).
    """
    counted: dict[tuple[int, ...], float] = {}
    if chips.find(mesh.devices.flat[0].device_kind) is None:
        return lambda size: None
    plain = config.copy_and_resolve_references()
    plain.model.attention, plain.model.remat, plain.train.accumulation_steps = "xla", "none", 1

    def count() -> None:
        trainer = make_trainer(plain, mesh, abstract=True)
        rows = checks.batch_rows(plain, parallel.data_shards(mesh))
        for size in dict.fromkeys(tuple(sorted(size)) for size in checks.picture_sizes(config)):
            batch = batch_shapes(trainer, rows, size)
            lowered = trainer.step.lower(trainer.state, trainer.frozen, batch, trainer.key)
            counted[size] = lowered.cost_analysis()["flops"]

    threading.Thread(target=count, daemon=True).start()
    return lambda size: counted.get(tuple(sorted(size)))
