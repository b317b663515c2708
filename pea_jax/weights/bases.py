"""A base model, the text-to-image model that is taught another language: a diffusers folder."""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from pea_jax.families import FAMILIES, Family, family_of
from pea_jax.families.english import EnglishText
from pea_jax.models.rngs import OneKey
from pea_jax.models.text.clip import CLIPTextConfig
from pea_jax.models.unet.unet import UNet, UNetConfig
from pea_jax.models.vae import VAE, VAEConfig
from pea_jax.runtime import parallel
from pea_jax.weights.load import WeightsError, abstract_module, load_module
from pea_jax.weights.locate import TOKENIZER_FILES, fetch_weights, prefers_half, read_json, resolve
from pea_jax.weights.tokenizers import AnyTokenizer, BlankTokenizer, Tokenizer, join

_TOKENIZER = ("CLIPTokenizer", "CLIPTokenizerFast")

#: Parts that neither training nor sampling needs.
_UNUSED = frozenset({"scheduler", "safety_checker", "feature_extractor", "image_encoder"})

_PARTS = {name: part for family in FAMILIES for name, part in family.networks.items()}
_CONFIG_FILES = (
    "model_index.json",
    *(f"{name}/config.json" for name in _PARTS),
    "scheduler/scheduler_config.json",
    *(f"{part.tokenizer}/{file}" for part in _PARTS.values() for file in TOKENIZER_FILES),
)


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
        return {name: part.stem for name, part in self.family.networks.items()}

    @property
    def networks(self) -> dict[str, Any]:
        """The config of every network, by its part of the folder."""
        return {"unet": self.unet, "vae": self.vae, **self.text_encoders}

    @property
    def tokenizers(self) -> list[str]:
        """The folder of each text encoder's tokenizer."""
        return [part.tokenizer for part in self.family.text_encoders.values()]

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
    values = {name: read_json(folder / name / "config.json") for name in family.networks}
    try:
        configs = {name: part.read_config(values[name]) for name, part in family.networks.items()}
        config = BaseConfig(
            family=family,
            unet=configs["unet"],
            vae=configs["vae"],
            text_encoders={name: configs[name] for name in family.text_encoders},
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
    is_split = mesh is not None and mesh.shape["fsdp"] > 1

    def load(name: str, **options: Any) -> Any:
        part_files = None if abstract else files[name]
        return _load(spec, config, name, part_files, mesh, **options)

    return BaseModel(
        config=config,
        unet=load(
            "unet",
            attention=spec.attention,
            mesh=mesh,
            remat=spec.remat,
            gather=parallel.replicated(mesh) if is_split else None,
        ),
        vae=load("vae"),
        text_encoder=EnglishText(config.family, [load(name) for name in config.text_encoders]),
        tokenizer=tokenizer,
    )


def load_vae(spec: BaseSpec, *, mesh: Mesh | None = None) -> VAE:
    """The VAE of `load_base` alone, by the same arguments.

    Raises:
      ValueError: as for `load_base`.
    """
    config = read_base_config(spec.name)
    return _load(spec, config, "vae", base_files(spec, config, ["vae"])["vae"], mesh)


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
    spec: BaseSpec,
    config: BaseConfig,
    name: str,
    files: list[Path] | None,
    mesh: Mesh | None,
    /,
    **options: Any,
) -> Any:
    """One network with its weights, or with shapes in their place if there are no files.

    `options` are those of the network beside its config.
    """
    part, dtype = config.family.networks[name], config.dtypes(spec.dtype)[name]
    build = functools.partial(
        part.build, config.networks[name], rngs=OneKey(), dtype=dtype, param_dtype=dtype, **options
    )
    sharding = None if mesh is None else parallel.parameter_sharding(mesh)
    if files is None:
        return abstract_module(build, sharding=sharding)
    return load_module(build, files, sharding=sharding, ignore=part.ignore)


def _class_of(index: Mapping[str, Any], part: str) -> str | None:
    """The class that a model_index.json names for a part; None where it has none."""
    entry = index.get(part)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def _check_parts(folder: Path, index: Mapping[str, Any], family: Family) -> None:
    """Refuses a folder whose model_index.json names parts, or classes of them, that we lack."""
    needed = {}
    for name, part in family.networks.items():
        needed |= {name: part.classes} | ({part.tokenizer: _TOKENIZER} if part.tokenizer else {})
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
