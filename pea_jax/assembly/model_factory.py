"""The models that a config names: the base model, the language encoder, the trained adapter."""

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from pea_jax.inference.pipeline import Pipeline
from pea_jax.inference.settings import Settings
from pea_jax.models.adapter import Adapter, AdapterConfig
from pea_jax.runtime import checkpoint_files, parallel, storage
from pea_jax.runtime.checkpoint_files import CHECKPOINTS
from pea_jax.runtime.storage import AnyPath
from pea_jax.weights.adapters import check_fit, read_adapter_config
from pea_jax.weights.bases import BaseSpec, load_base, read_base_config
from pea_jax.weights.language import load_language_encoder, read_language_config


def model_dtype(name: str, platform: str) -> str:
    """The dtype of frozen weights that `model.dtype` asks for; "auto" goes by the devices.

    Args:
        name: "auto", "float32" or "bfloat16".
        platform: of the devices, as `parallel.platform` gives it.

    Raises:
        ValueError: it is none of those that models compute in.
    """
    if name == "auto":
        return "float32" if platform == "cpu" else "bfloat16"
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"model.dtype: expected auto, float32 or bfloat16, got {name!r}")
    return name


def base_spec(config: ConfigDict, platform: str) -> BaseSpec:
    """The base model of a run: what every task loads, compiles, hashes or exports.

    Args:
      config: see configs/base.py.
      platform: of the devices, as `parallel.platform` gives it.
    """
    model = config.model
    dtype = jnp.dtype(model_dtype(model.dtype, platform))
    return BaseSpec(model.base, dtype, model.attention, model.remat)


def adapter_config(config: ConfigDict, *, allow_builtin: bool = False) -> AdapterConfig:
    """The shape of the adapter between the two models, from their small files alone."""
    base = read_base_config(config.model.base, allow_builtin=allow_builtin)
    unet = base.unet
    if unet.in_channels != base.vae.latent_channels:
        raise ValueError(
            f"{config.model.base}: expected a text-to-image UNet, got one with {unet.in_channels} "
            "channels in, for inpainting; an adapter of its text-to-image base fits it"
        )
    width = read_language_config(config.model.language_encoder, allow_builtin=allow_builtin).width
    if not config.adapter.init_from:
        return AdapterConfig(
            input_width=width,
            hidden_width=config.adapter.hidden_width,
            output_width=unet.cross_attention_dim,
            projector_layers=config.adapter.projector_layers,
            pooled_width=unet.pooled_width,
        )
    initial, _ = read_adapter_config(storage.local(config.adapter.init_from, "adapter.init_from"))
    check_fit(initial, width, unet, name=config.adapter.init_from)
    return initial


def load_pipeline(config: ConfigDict, adapter: Adapter | None) -> Pipeline:
    """The pipeline of a run's config with an adapter; None gives the English base model."""
    mesh = parallel.make_mesh(config.mesh.data, config.mesh.fsdp)
    spec = base_spec(config, parallel.platform(mesh))
    language = None
    if adapter is not None:
        language = load_language_encoder(
            config.model.language_encoder,
            dtype=spec.dtype,
            mesh=mesh,
            max_length=config.model.language_max_length,
        )
    return Pipeline(load_base(spec, mesh=mesh), language, adapter, mesh)


def sample_settings(config: ConfigDict) -> Settings:
    """The settings under `config.sample`, where 0 stands for a default."""
    values = config.sample
    return Settings(
        steps=values.steps,
        guidance_scale=values.guidance_scale,
        guidance_rescale=values.guidance_rescale,
        solver=values.solver,
        negative_prompt=values.negative_prompt,
        height=values.height or config.data.image_size,
        width=values.width or config.data.image_size,
        batch_size=values.batch_size or None,
    )


def load_trained_adapter(workdir: AnyPath, *, step: int | None = None) -> tuple[Adapter, int]:
    """The trained adapter of a run, its moving average where the run keeps one.

    Args:
        workdir: of the run, which may be going on; nothing is changed there.
        step: of the checkpoint; None takes the latest that is whole and warns of later ones.

    Returns:
        The adapter, float32, uncommitted on the default device, and its step.

    Raises:
        FileNotFoundError: the workdir has no checkpoint, or none of this step.
        ValueError: the checkpoint of this step is damaged, or all are.
    """
    steps = checkpoint_files.steps(workdir)
    if not steps:
        raise FileNotFoundError(f"{workdir} holds no checkpoint: expected one in {CHECKPOINTS}/")
    if step is not None and step not in steps:
        raise FileNotFoundError(
            f"{workdir} holds no checkpoint of step {step}: there are {', '.join(map(str, steps))}"
        )

    def read(folder: AnyPath) -> Adapter:
        item = "ema" if "ema" in checkpoint_files.read_items(folder) else "adapter"
        config = AdapterConfig(**checkpoint_files.read_meta(folder)["adapter"])
        graph, state = nnx.split(nnx.eval_shape(lambda: Adapter(config, rngs=nnx.Rngs(0))))
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        form = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), state
        )
        state = checkpoint_files.read_tree(folder, item, form)
        # Through the host: an array of a checkpoint is committed to its device, a fresh one is not.
        return nnx.merge(graph, jax.tree.map(jax.numpy.asarray, jax.device_get(state)))

    chosen, adapter, _ = checkpoint_files.latest_whole(
        workdir, steps if step is None else [step], read
    )
    return adapter, chosen
