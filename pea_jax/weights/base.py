"""A base model, the text-to-image model that is taught another language: a diffusers folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from pea_jax import parallel
from pea_jax.models.clip import CLIPText, CLIPTextConfig
from pea_jax.models.unet import UNet, UNetConfig
from pea_jax.models.vae import VAE, VAEConfig
from pea_jax.weights.load import WeightsError, load_module
from pea_jax.weights.locate import (
    TOKENIZER_FILES,
    fetch_weights,
    prefers_half,
    read_json,
    resolve,
)
from pea_jax.weights.tokenizer import Tokenizer

#: The parts that are read, with the classes that a model_index.json may name for each.
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}

#: Parts that neither training nor sampling needs.
_UNUSED = frozenset({"scheduler", "safety_checker", "feature_extractor", "image_encoder"})

_STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}

_CONFIG_FILES = (
    "model_index.json",
    *(f"{part}/config.json" for part in _STEMS),
    "scheduler/scheduler_config.json",
    *(f"tokenizer/{name}" for name in TOKENIZER_FILES),
)

#: Of a CLIPTextModelWithProjection; the UNet sees the tokens before it.
_TEXT_EXTRAS = (r"text_projection\.weight",)


@dataclass(frozen=True)
class BaseConfig:
    """What the small files of a base model say: everything but the weights.

    Attributes:
      unet: its shape; `unet.cross_attention_dim` is the width that an adapter must give.
      vae: its shape.
      text_encoder: its shape.
      schedule: the content of scheduler_config.json, for `diffusion.schedule.Schedule.from_dict`.
      folder: where the files are.
    """

    unet: UNetConfig
    vae: VAEConfig
    text_encoder: CLIPTextConfig
    schedule: dict[str, Any]
    folder: Path


@dataclass(frozen=True)
class BaseModel:
    """The frozen networks of a text-to-image model with what they need around them.

    Attributes:
      unet: the denoiser.
      vae: between pixels and latents.
      text_encoder: the model's own, English one.
      tokenizer: of the text encoder.
      schedule: the content of scheduler_config.json, for `diffusion.schedule.Schedule.from_dict`.
      folder: where the files are.
    """

    unet: UNet
    vae: VAE
    text_encoder: CLIPText
    tokenizer: Tokenizer
    schedule: dict[str, Any]
    folder: Path


def read_base_config(name: str | Path, *, revision: str | None = None) -> BaseConfig:
    """Reads (and fetches) the small files alone, so that what doesn't fit is refused early.

    Args:
      name: a folder in diffusers' format, "tinyworld/sd", or an id on the Hub (`locate.resolve`).
      revision: on the Hub.

    Raises:
      ValueError: a file that is missing, a part or a value that is not supported, or parts that
        don't fit each other; with the folder.
    """
    folder = resolve(name, patterns=_CONFIG_FILES, revision=revision)
    _check_parts(folder)
    values = {part: read_json(folder / part / "config.json") for part in _STEMS}
    try:
        config = BaseConfig(
            unet=UNetConfig.from_dict(values["unet"]),
            vae=VAEConfig.from_dict(values["vae"]),
            text_encoder=CLIPTextConfig.from_dict(values["text_encoder"]),
            schedule=read_json(folder / "scheduler" / "scheduler_config.json"),
            folder=folder,
        )
    except WeightsError:
        raise
    except ValueError as error:
        raise WeightsError(f"{folder}: {error}") from error
    problems = []
    if config.text_encoder.hidden_size != config.unet.cross_attention_dim:
        problems.append(
            f"expected a text encoder of width {config.unet.cross_attention_dim} (the UNet's "
            f"cross_attention_dim), got {config.text_encoder.hidden_size}"
        )
    if config.vae.latent_channels != config.unet.in_channels:
        problems.append(
            f"expected latents of {config.unet.in_channels} channels (the UNet's in_channels), "
            f"got {config.vae.latent_channels} from the VAE"
        )
    if problems:
        raise WeightsError(f"{folder}: {'; '.join(problems)}")
    return config


def load_base(
    name: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
    revision: str | None = None,
) -> BaseModel:
    """Loads a base model, its frozen weights spread over `mesh` (`parallel.parameter_sharding`).

    Args:
      name: as for `read_base_config`.
      dtype: of the weights and of the computation; a 16-bit one reads fp16 files where there are.
      mesh: None leaves the weights uncommitted on the default device.
      revision: on the Hub.

    Raises:
      ValueError: as for `read_base_config`, or weights that are missing or don't fit.
    """
    config = read_base_config(name, revision=revision)
    tokenizer = Tokenizer.from_folder(
        config.folder / "tokenizer", config.text_encoder.max_position_embeddings
    )
    files = fetch_weights(name, _STEMS, half=prefers_half(dtype), revision=revision)
    sharding = None if mesh is None else parallel.parameter_sharding(mesh)

    def load(part: str, build: Callable[..., nnx.Module], ignore: tuple[str, ...] = ()) -> Any:
        return load_module(
            lambda: build(getattr(config, part), rngs=nnx.Rngs(0), dtype=dtype, param_dtype=dtype),
            files[part],
            sharding=sharding,
            ignore=ignore,
        )

    return BaseModel(
        unet=load("unet", UNet),
        vae=load("vae", VAE),
        text_encoder=load("text_encoder", CLIPText, _TEXT_EXTRAS),
        tokenizer=tokenizer,
        schedule=config.schedule,
        folder=config.folder,
    )


def _check_parts(folder: Path) -> None:
    """Refuses a folder whose model_index.json names parts, or classes of them, that we lack."""
    file = folder / "model_index.json"
    parts = {
        part: entry[1]
        for part, entry in read_json(file).items()
        if isinstance(entry, list) and len(entry) == 2 and entry[1] is not None
    }
    problems = [
        f"{part}: expected a {classes[0]}, got {parts.get(part)}"
        for part, classes in _CLASSES.items()
        if parts.get(part) not in classes
    ]
    problems += [
        f"{part}: a {kind} is not supported"
        for part, kind in parts.items()
        if part not in _CLASSES and part not in _UNUSED
    ]
    if problems:
        raise WeightsError(f"{file}: {'; '.join(problems)}")
