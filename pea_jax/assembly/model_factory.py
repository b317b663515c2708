"""The models that a config names: the base model, the language encoder, the trained adapter."""

import jax
from flax import nnx
from ml_collections import ConfigDict

from pea_jax.inference.pipeline import Pipeline, Settings
from pea_jax.models.adapter import Adapter, AdapterConfig
from pea_jax.runtime import checkpoint_files, parallel
from pea_jax.runtime.checkpoint_files import CHECKPOINTS
from pea_jax.runtime.storage import AnyPath


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


def load_pipeline(config: ConfigDict, adapter: Adapter | None) -> Pipeline:
    """The pipeline of a run's config with an adapter; None gives the English base model."""
    model = config.model
    mesh = parallel.make_mesh(config.mesh.data, config.mesh.fsdp)
    return Pipeline.from_pretrained(
        model.base,
        None if adapter is None else model.language_encoder,
        adapter,
        dtype=model_dtype(model.dtype, parallel.platform(mesh)),
        mesh=mesh,
        max_length=model.language_max_length,
        attention=model.attention,
    )


def sample_settings(config: ConfigDict) -> Settings:
    """The settings under `config.sample`, where 0 stands for a default."""
    given = config.sample
    return Settings(
        steps=given.steps,
        guidance_scale=given.guidance_scale,
        guidance_rescale=given.guidance_rescale,
        solver=given.solver,
        negative_prompt=given.negative_prompt,
        height=given.height or config.data.image_size,
        width=given.width or config.data.image_size,
        batch_size=given.batch_size or None,
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
