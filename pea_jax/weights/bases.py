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

from pea_jax.families import FAMILIES, Family, family_of
from pea_jax.families.english import EnglishText
from pea_jax.models.rngs import OneKey
from pea_jax.models.text.clip import CLIPText, CLIPTextConfig
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

#: Parts that neither training nor sampling needs.
_UNUSED = frozenset({"scheduler", "safety_checker", "feature_extractor", "image_encoder"})

_STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    **{part: "model" for family in FAMILIES for part in family.text_encoders},
}

_CONFIG_FILES = (
    "model_index.json",
    *(f"{part}/config.json" for part in _STEMS),
    "scheduler/scheduler_config.json",
    *(
        f"{part}/{name}"
        for family in FAMILIES
        for part in family.text_encoders.values()
        for name in TOKENIZER_FILES
    ),
)

#: Tensors of a CLIPTextModelWithProjection of which the UNet sees only the tokens.
_TEXT_EXTRAS = (r"text_projection\.weight",)


@dataclass(frozen=True)
class BaseSpec:
    """Which base model, and how it is loaded: whoever has the same spec has the same weights.

    Attributes:
      name: as for `read_base_config`.
      dtype: of the weights and of the computation; a 16-bit one prefers fp16 files.
      attention: of the UNet, see `models.attention.core`.
      remat: of the UNet, see `models.unet.unet.UNet`; it matters in training only.
    """

    name: str | Path
    dtype: DTypeLike = jnp.float32
    attention: str = "auto"
    remat: str = "none"


@dataclass(frozen=True)
class BaseConfig:
    """What the small files of a base model say: everything except the weights.

    Attributes:
      family: the family that it belongs to.
      unet: shape of the UNet; `unet.cross_attention_dim` is the width that an adapter must give,
        and `unet.pooled_width` that of its pooled vector, None for families without (SD 1.x, 2.x).
      vae: shape of the VAE.
      text_encoders: shapes of the text towers, by part.
      schedule: the content of scheduler_config.json, for `diffusion.schedule.Schedule.from_dict`.
      zero_empty_prompt: whether an empty English negative prompt stands for zeros rather than for
        its encoding (model_index.json's force_zeros_for_empty_prompt).
      folder: of the files.
    """

    family: Family
    unet: UNetConfig
    vae: VAEConfig
    text_encoders: Mapping[str, CLIPTextConfig]
    schedule: dict[str, Any]
    zero_empty_prompt: bool
    folder: Path

    @property
    def stems(self) -> dict[str, str]:
        """Every part with weights, and the name of its weight files without the suffix."""
        return {part: _STEMS[part] for part in ("unet", "vae", *self.text_encoders)}

    @property
    def tokenizers(self) -> list[str]:
        """The folder of each text encoder's tokenizer."""
        return list(self.family.text_encoders.values())

    def dtypes(self, dtype: DTypeLike) -> dict[str, DTypeLike]:
        """The dtype of every part where `dtype` is asked for; see `Family.upcasts_vae`."""
        upcast = self.family.upcasts_vae and self.vae.force_upcast
        return {part: jnp.float32 if part == "vae" and upcast else dtype for part in self.stems}


@dataclass(frozen=True)
class BaseModel:
    """The frozen networks of a text-to-image model with what they need around them.

    Attributes:
      config: what its small files say.
      unet: the denoiser.
      vae: between pixels and latents.
      text_encoder: the model's own, English text side.
      tokenizer: of the text side; for two towers, the ids of both tokenizers side by side.
    """

    config: BaseConfig
    unet: UNet
    vae: VAE
    text_encoder: EnglishText
    tokenizer: AnyTokenizer


def read_base_config(name: str | Path, *, allow_builtin: bool = False) -> BaseConfig:
    """Reads (and fetches) the small files only, so that what doesn't fit is refused early.

    Args:
      name: a folder in diffusers' format, "tinyworld/sd", or an id on the Hub (`locate.resolve`).
      allow_builtin: as for `locate.resolve`.

    Raises:
      ValueError: a file that is missing, a part or a value that is not supported, or parts that
        don't fit each other; with the folder.
    """
    folder = resolve(name, patterns=_CONFIG_FILES, allow_builtin=allow_builtin)
    index = read_json(folder / "model_index.json")
    family = family_of([part for part in index if _class_of(index, part)])
    _check_parts(folder, index, family)
    values = {
        part: read_json(folder / part / "config.json")
        for part in ("unet", "vae", *family.text_encoders)
    }
    try:
        config = BaseConfig(
            family=family,
            unet=UNetConfig.from_dict(values["unet"]),
            vae=VAEConfig.from_dict(values["vae"]),
            text_encoders={
                part: CLIPTextConfig.from_dict(values[part]) for part in family.text_encoders
            },
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


def load_base(spec: BaseSpec, *, mesh: Mesh | None = None, abstract: bool = False) -> BaseModel:
    """Loads a base model, its frozen weights spread over `mesh` (`parallel.parameter_sharding`).

    Args:
      spec: the model and how it is loaded.
      mesh: None leaves the weights uncommitted on the default device.
      abstract: reads the small files only (or takes the built-in ones) and gives a model of shapes
        in place of arrays, as `load.abstract_module` makes them, with blank tokenizers: what a
        program is compiled from.

    Raises:
      ValueError: as for `read_base_config`, or weights that are missing or don't fit.
    """
    config = read_base_config(spec.name, allow_builtin=abstract)
    tokenizer = read_tokenizer(config, abstract=abstract)
    files = {} if abstract else base_files(spec, config)
    load = functools.partial(_load, config.dtypes(spec.dtype), files, mesh, abstract)
    is_split = mesh is not None and mesh.shape["fsdp"] > 1
    unet = functools.partial(
        UNet,
        config.unet,
        attention=spec.attention,
        mesh=mesh,
        remat=spec.remat,
        gather=parallel.replicated(mesh) if is_split else None,
    )
    towers = []
    for part, tower in config.text_encoders.items():
        projected = part == config.family.pooled
        build = functools.partial(CLIPText, tower, projected=projected)
        towers.append(load(part, build, () if projected else _TEXT_EXTRAS))
    return BaseModel(
        config=config,
        unet=load("unet", unet),
        vae=load("vae", functools.partial(VAE, config.vae)),
        text_encoder=EnglishText(config.family, towers),
        tokenizer=tokenizer,
    )


def load_vae(spec: BaseSpec, *, mesh: Mesh | None = None) -> VAE:
    """The VAE of `load_base` alone, by the same arguments.

    Raises:
      ValueError: as for `load_base`.
    """
    config = read_base_config(spec.name)
    files = base_files(spec, config, ["vae"])
    return _load(
        config.dtypes(spec.dtype), files, mesh, False, "vae", functools.partial(VAE, config.vae)
    )


def hash_vae(spec: BaseSpec) -> str:
    """A fingerprint of the VAE of `load_vae`: 16 hex digits of its weight files and config.

    It differs between the fp16 file of a VAE and its full one, as what they encode does.

    Raises:
      ValueError: as for `load_base`.
    """
    config = read_base_config(spec.name)
    digest = hashlib.sha256()
    for file in base_files(spec, config, ["vae"])["vae"]:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    digest.update(json.dumps(asdict(config.vae), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def base_files(
    spec: BaseSpec, config: BaseConfig, parts: Iterable[str] | None = None
) -> dict[str, list[Path]]:
    """The weight files that `load_base` reads, by part, fetched where they are not here yet.

    Args:
      spec: the model and how it is loaded.
      config: of that model.
      parts: None takes all.
    """
    parts, dtypes = list(config.stems if parts is None else parts), config.dtypes(spec.dtype)
    files: dict[str, list[Path]] = {}
    for half in (True, False):
        stems = {p: config.stems[p] for p in parts if prefers_half(dtypes[p]) == half}
        if stems:
            files |= fetch_weights(spec.name, stems, half=half)
    return files


def _load(
    dtypes: Mapping[str, DTypeLike],
    files: Mapping[str, list[Path]],
    mesh: Mesh | None,
    abstract: bool,
    part: str,
    build: Callable[..., nnx.Module],
    ignore: tuple[str, ...] = (),
) -> Any:
    """The module of one part with its weights, or with shapes in their place."""
    dtype = dtypes[part]
    typed = functools.partial(build, rngs=OneKey(), dtype=dtype, param_dtype=dtype)
    sharding = None if mesh is None else parallel.parameter_sharding(mesh)
    if abstract:
        return abstract_module(typed, sharding=sharding)
    return load_module(typed, files[part], sharding=sharding, ignore=ignore)


def _class_of(index: Mapping[str, Any], part: str) -> str | None:
    """The class that a model_index.json names for a part; None where it has none."""
    entry = index.get(part)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def _check_parts(folder: Path, index: Mapping[str, Any], family: Family) -> None:
    """Refuses a folder whose model_index.json names parts, or classes of them, that we lack."""
    needed = {"unet": _UNET, "vae": _VAE}
    for part, tokenizer in family.text_encoders.items():
        needed |= {part: _TEXT[1:] if part == family.pooled else _TEXT, tokenizer: _TOKENIZER}
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
    pooled = towers[-1].projection_dim if config.family.pooled else None
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
