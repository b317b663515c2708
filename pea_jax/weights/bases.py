"""A base model, the text-to-image model that is taught another language: a diffusers folder."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from pea_jax.models.rngs import OneKey
from pea_jax.models.text.clip import CLIPText, CLIPTextConfig
from pea_jax.models.text.english import EnglishText
from pea_jax.models.unet.unet import UNet, UNetConfig
from pea_jax.models.vae import VAE, VAEConfig
from pea_jax.runtime import parallel
from pea_jax.weights.load import WeightsError, abstract_module, load_module
from pea_jax.weights.locate import TOKENIZER_FILES, fetch_weights, prefers_half, read_json, resolve
from pea_jax.weights.tokenizers import AnyTokenizer, BlankTokenizer, Tokenizer, join

#: The classes that a model_index.json may name for a part.
_UNET, _VAE = ("UNet2DConditionModel",), ("AutoencoderKL",)
_TEXT = ("CLIPTextModel", "CLIPTextModelWithProjection")
_TOKENIZER = ("CLIPTokenizer", "CLIPTokenizerFast")

#: The text towers of a family with their tokenizers, by the parts that a folder has.
_TEXT_PARTS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}

#: Parts that neither training nor sampling needs.
_UNUSED = frozenset({"scheduler", "safety_checker", "feature_extractor", "image_encoder"})

_STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    **dict.fromkeys(_TEXT_PARTS, "model"),
}

_CONFIG_FILES = (
    "model_index.json",
    *(f"{part}/config.json" for part in _STEMS),
    "scheduler/scheduler_config.json",
    *(f"{part}/{name}" for part in _TEXT_PARTS.values() for name in TOKENIZER_FILES),
)

#: Of a CLIPTextModelWithProjection whose tokens alone the UNet sees.
_TEXT_EXTRAS = (r"text_projection\.weight",)


@dataclass(frozen=True)
class BaseConfig:
    """What the small files of a base model say: everything but the weights.

    Attributes:
      unet: its shape; `unet.cross_attention_dim` is the width that an adapter must give, and
        `unet.pooled_width` that of its pooled vector, None for families without (SD 1.x, 2.x).
      vae: its shape.
      text_encoders: the towers' shapes, by part: SDXL has two, the others one.
      schedule: the content of scheduler_config.json, for `diffusion.schedule.Schedule.from_dict`.
      zero_empty_prompt: whether an English negative prompt that is empty stands for zeros rather
        than for what the towers make of it (model_index.json's force_zeros_for_empty_prompt).
      folder: where the files are.
    """

    unet: UNetConfig
    vae: VAEConfig
    text_encoders: Mapping[str, CLIPTextConfig]
    schedule: dict[str, Any]
    zero_empty_prompt: bool
    folder: Path

    @property
    def stems(self) -> dict[str, str]:
        """Every part with weights, and what its weight files are called."""
        return {part: _STEMS[part] for part in ("unet", "vae", *self.text_encoders)}

    @property
    def tokenizers(self) -> list[str]:
        """The folder of each text encoder's tokenizer."""
        return [_TEXT_PARTS[part] for part in self.text_encoders]

    def dtypes(self, dtype: DTypeLike) -> dict[str, DTypeLike]:
        """What every part computes in where `dtype` is asked for; see `load_base` on SDXL's VAE."""
        upcast = self.unet.pooled_width is not None and self.vae.force_upcast
        return {part: jnp.float32 if part == "vae" and upcast else dtype for part in self.stems}


@dataclass(frozen=True)
class BaseModel:
    """The frozen networks of a text-to-image model with what they need around them.

    Attributes:
      unet: the denoiser.
      vae: between pixels and latents.
      text_encoder: the model's own, English text side.
      tokenizer: of the text side; of two towers, both tokenizers' ids side by side.
      schedule: the content of scheduler_config.json, for `diffusion.schedule.Schedule.from_dict`.
      zero_empty_prompt: as in `BaseConfig`.
      folder: where the files are.
    """

    unet: UNet
    vae: VAE
    text_encoder: EnglishText
    tokenizer: AnyTokenizer
    schedule: dict[str, Any]
    zero_empty_prompt: bool
    folder: Path


def read_base_config(name: str | Path, *, allow_builtin: bool = False) -> BaseConfig:
    """Reads (and fetches) the small files alone, so that what doesn't fit is refused early.

    Args:
      name: a folder in diffusers' format, "tinyworld/sd", or an id on the Hub (`locate.resolve`).
      allow_builtin: as for `locate.resolve`.

    Raises:
      ValueError: a file that is missing, a part or a value that is not supported, or parts that
        don't fit each other; with the folder.
    """
    folder = resolve(name, patterns=_CONFIG_FILES, allow_builtin=allow_builtin)
    index = read_json(folder / "model_index.json")
    _check_parts(folder, index)
    towers = [part for part in _TEXT_PARTS if _class_of(index, part)]
    values = {part: read_json(folder / part / "config.json") for part in ("unet", "vae", *towers)}
    try:
        config = BaseConfig(
            unet=UNetConfig.from_dict(values["unet"]),
            vae=VAEConfig.from_dict(values["vae"]),
            text_encoders={part: CLIPTextConfig.from_dict(values[part]) for part in towers},
            schedule=read_json(folder / "scheduler" / "scheduler_config.json"),
            zero_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", False)),
            folder=folder,
        )
    except WeightsError:
        raise
    except ValueError as error:
        raise WeightsError(f"{folder}: {error}") from error
    _check_fit(config)
    return config


def read_tokenizer(config: BaseConfig, *, abstract: bool = False) -> AnyTokenizer:
    """The tokenizer of the text side; of two towers, both at once. An abstract one is blank."""
    towers = zip(config.tokenizers, config.text_encoders.values(), strict=True)
    return join(
        [
            BlankTokenizer(tower.max_position_embeddings)
            if abstract
            else Tokenizer.from_folder(config.folder / part, tower.max_position_embeddings)
            for part, tower in towers
        ]
    )


def load_base(
    name: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
    attention: str = "auto",
    remat: str = "none",
    abstract: bool = False,
) -> BaseModel:
    """Loads a base model, its frozen weights spread over `mesh` (`parallel.parameter_sharding`).

    An SDXL VAE whose config says force_upcast is float32 whatever `dtype` is, as diffusers has it:
    the published one overflows in 16 bits. (sdxl-vae-fp16-fix does not say so.)

    Args:
      name: as for `read_base_config`.
      dtype: of the weights and of the computation; a 16-bit one reads fp16 files where there are.
      mesh: None leaves the weights uncommitted on the default device.
      attention: of the UNet, see `models.attention`.
      remat: of the UNet, see `models.unet.UNet`; it matters for training alone.
      abstract: read the small files alone (or those of `builtin_configs`); the model has shapes in
        place of arrays (`load.abstract_module`) and blank tokenizers, to compile a program from.

    Raises:
      ValueError: as for `read_base_config`, or weights that are missing or don't fit.
    """
    config = read_base_config(name, allow_builtin=abstract)
    tokenizer = read_tokenizer(config, abstract=abstract)
    dtypes = config.dtypes(dtype)
    files = {} if abstract else _fetch(name, config, dtypes, config.stems)
    sharding = None if mesh is None else parallel.parameter_sharding(mesh)

    def load(part: str, build: Callable[..., nnx.Module], ignore: tuple[str, ...] = ()) -> Any:
        typed = functools.partial(
            build, rngs=OneKey(), dtype=dtypes[part], param_dtype=dtypes[part]
        )
        if abstract:
            return abstract_module(typed, sharding=sharding)
        return load_module(typed, files[part], sharding=sharding, ignore=ignore)

    is_split = mesh is not None and mesh.shape["fsdp"] > 1
    unet = functools.partial(
        UNet,
        config.unet,
        attention=attention,
        mesh=mesh,
        remat=remat,
        gather=parallel.replicated(mesh) if is_split else None,
    )
    towers = []
    for part, tower in config.text_encoders.items():
        projected = config.unet.pooled_width is not None and part == "text_encoder_2"
        build = functools.partial(CLIPText, tower, projected=projected)
        towers.append(load(part, build, () if projected else _TEXT_EXTRAS))
    return BaseModel(
        unet=load("unet", unet),
        vae=load("vae", functools.partial(VAE, config.vae)),
        text_encoder=EnglishText(towers),
        tokenizer=tokenizer,
        schedule=config.schedule,
        zero_empty_prompt=config.zero_empty_prompt,
        folder=config.folder,
    )


def load_vae(name: str | Path, *, dtype: DTypeLike = jnp.float32, mesh: Mesh | None = None) -> VAE:
    """The VAE of `load_base` alone, by the same arguments.

    Raises:
      ValueError: as for `load_base`.
    """
    config = read_base_config(name)
    dtypes = config.dtypes(dtype)
    build = functools.partial(
        VAE, config.vae, rngs=OneKey(), dtype=dtypes["vae"], param_dtype=dtypes["vae"]
    )
    files = _fetch(name, config, dtypes, ["vae"])["vae"]
    sharding = None if mesh is None else parallel.parameter_sharding(mesh)
    return load_module(build, files, sharding=sharding)


def hash_vae(name: str | Path, *, dtype: DTypeLike = jnp.float32) -> str:
    """What tells the VAE of `load_vae` from others: 16 hex digits of its weight files and config.

    The fp16 file of a VAE and its full one differ in it, as they do in what they encode.

    Raises:
      ValueError: as for `load_base`.
    """
    config = read_base_config(name)
    digest = hashlib.sha256()
    for file in _fetch(name, config, config.dtypes(dtype), ["vae"])["vae"]:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    digest.update(json.dumps(asdict(config.vae), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _fetch(
    name: str | Path,
    config: BaseConfig,
    dtypes: Mapping[str, DTypeLike],
    parts: Iterable[str],
) -> dict[str, list[Path]]:
    """The weight files of some parts."""
    files: dict[str, list[Path]] = {}
    for half in (True, False):
        stems = {p: config.stems[p] for p in parts if prefers_half(dtypes[p]) == half}
        if stems:
            files |= fetch_weights(name, stems, half=half)
    return files


def _class_of(index: Mapping[str, Any], part: str) -> str | None:
    """The class that a model_index.json names for a part; None where it has none."""
    entry = index.get(part)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def _check_parts(folder: Path, index: Mapping[str, Any]) -> None:
    """Refuses a folder whose model_index.json names parts, or classes of them, that we lack."""
    needed = {"unet": _UNET, "vae": _VAE, "text_encoder": _TEXT, "tokenizer": _TOKENIZER}
    if _class_of(index, "text_encoder_2"):
        needed |= {"text_encoder_2": _TEXT[1:], "tokenizer_2": _TOKENIZER}
    problems = [
        f"{part}: expected a {classes[0]}, got {_class_of(index, part)}"
        for part, classes in needed.items()
        if _class_of(index, part) not in classes
    ]
    problems += [
        f"{part}: a {kind} is not supported"
        for part in index
        if (kind := _class_of(index, part)) and part not in needed and part not in _UNUSED
    ]
    if problems:
        raise WeightsError(f"{folder / 'model_index.json'}: {'; '.join(problems)}")


def _check_fit(config: BaseConfig) -> None:
    """Refuses parts that don't fit each other, all of them in one raise."""
    unet, towers = config.unet, list(config.text_encoders.values())
    width = sum(tower.hidden_size for tower in towers)
    problems = []
    if width != unet.cross_attention_dim:
        problems.append(
            f"expected a text side of width {unet.cross_attention_dim} (the UNet's "
            f"cross_attention_dim), got {' + '.join(str(tower.hidden_size) for tower in towers)}"
        )
    pooled = towers[-1].projection_dim if len(towers) == 2 else None
    if pooled != unet.pooled_width:
        problems.append(
            f"expected a pooled text vector of width {unet.pooled_width} (the UNet's added "
            f"conditioning), got {pooled}"
        )
    lengths = {tower.max_position_embeddings for tower in towers}
    if len(lengths) > 1:
        problems.append(f"expected text encoders of one length, got {sorted(lengths)}")
    # An inpainting UNet sees noisy latents, a mask, and the latents of the masked image.
    latents = config.vae.latent_channels
    if unet.in_channels not in (latents, 2 * latents + 1):
        problems.append(
            f"expected latents of {unet.in_channels} channels (the UNet's in_channels), "
            f"got {latents} from the VAE"
        )
    if problems:
        raise WeightsError(f"{config.folder}: {'; '.join(problems)}")
