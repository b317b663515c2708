"""Reads the small files of a language encoder, in whatever layout its authors publish it.

The layout is recognised by these files of its folder, in this order:

    config.json             transformers, by model_type; or ruCLIP's own
    open_clip_config.json   open_clip with a text tower of transformers, by the tower's name
    open_clip_*             the same without a config; the sizes come from the shapes of the weights
    clip_cn_*.pt, vocab.txt the cn_clip package; the sizes come from the shapes
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pea_jax.models.text.bert import BertConfig
from pea_jax.weights import ruclip
from pea_jax.weights.builtin_configs import read_config
from pea_jax.weights.encoders import (
    CHINESE_CLIP,
    ENCODERS,
    OPEN_CLIP,
    RU_CLIP,
    EncoderKind,
    TowerConfig,
)
from pea_jax.weights.errors import WeightsError
from pea_jax.weights.load import read_header
from pea_jax.weights.locate import (
    TOKENIZER_FILES,
    fetch_weights,
    read_json,
    resolve,
    split_revision,
)
from pea_jax.weights.registry import find

#: Text towers that an open_clip_config.json names without their sizes (Conneau et al. 2020, arXiv
#: 1911.02116).
OPEN_CLIP_TEXT = ("xlm-roberta-base", "xlm-roberta-large")

_CN_CLIP_FILES = "clip_cn_*.pt"


@dataclass(frozen=True)
class EncoderFiles:
    """An encoder whose small files have been read.

    Attributes:
      folder: location of the small files.
      kind: how the other files are read.
      config: shape of the tower.
      source: folder or repository with the weights.
      file: the weight file, where its name follows no stem.
    """

    folder: Path
    kind: EncoderKind
    config: TowerConfig
    source: str | Path
    file: Path | None = None

    def fetch(self, *, half: bool) -> list[Path]:
        """The weight files, downloaded if necessary."""
        if self.file is not None:
            return [self.file]
        stems = {"": self.kind.stem}
        return fetch_weights(self.source, stems, half=half, beside=self.kind.beside)[""]


def read_encoder_files(name: str | Path, *, allow_builtin: bool = False) -> EncoderFiles:
    """Reads (and downloads, if necessary) the small files of one encoder.

    Args:
      name: of `registry.SHORT_NAMES`, a folder, or the id of a repository on the Hub; `@` and a
        revision may follow a short name or an id.
      allow_builtin: as for `locate.resolve`.

    Raises:
      WeightsError: files that are missing, a layout or a value that is not supported.
    """
    repository, revision = split_revision(str(name))
    known = find(repository)
    source = name
    if known is not None:
        source = known.repository if revision is None else f"{known.repository}@{revision}"
    patterns = ("config.json", "open_clip_config.json", *TOKENIZER_FILES)
    folder = resolve(source, patterns=patterns, allow_builtin=allow_builtin)
    try:
        kind, config, file = _read(folder, known.architecture if known else None)
    except WeightsError:
        raise
    except ValueError as error:
        raise WeightsError(f"{folder}: {error}") from error
    if known and known.length is not None:
        kind = replace(kind, length=known.length)
    return EncoderFiles(folder, kind, config, source, file)


def _read(folder: Path, architecture: str | None) -> tuple[EncoderKind, TowerConfig, Path | None]:
    """Kind and shape, and the weight file where its name follows no stem."""
    if (folder / "config.json").is_file():
        values = read_json(folder / "config.json")
        name = values.get("model_type")
        kind = RU_CLIP if ruclip.is_config(values) else ENCODERS.get(str(name))
        if kind is None:
            raise ValueError(f"expected a model_type of {', '.join(ENCODERS)}, got {name!r}")
        return kind, kind.read_config(values), None
    if (folder / "open_clip_config.json").is_file():
        return *_read_open_clip(read_json(folder / "open_clip_config.json")), None
    if architecture is not None:
        return OPEN_CLIP, BertConfig.from_dict(read_config(f"{architecture}/config.json")), None
    if files := sorted(folder.glob("open_clip_*model.*")):
        known = read_config("xlm-roberta-large/config.json")
        return OPEN_CLIP, _config_of_shapes(files[0], "text.transformer.", known), None
    if (files := sorted(folder.glob(_CN_CLIP_FILES))) and (folder / "vocab.txt").is_file():
        if len(files) > 1:
            raise ValueError(f"expected one {_CN_CLIP_FILES}, got {len(files)}")
        config = _config_of_shapes(files[0], "bert.", {"model_type": "bert"})
        return CHINESE_CLIP, config, files[0]
    found = ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing"
    raise ValueError(
        "expected config.json, open_clip_config.json, open_clip_model.safetensors, or "
        f"{_CN_CLIP_FILES} with vocab.txt, got {found}"
    )


def _read_open_clip(values: dict[str, Any]) -> tuple[EncoderKind, BertConfig]:
    """Kind, with the context length, and shape in an open_clip_config.json."""
    text = values.get("model_cfg", values).get("text_cfg", {})
    sizes = text.get("hf_model_config")
    if not sizes:
        name = str(text.get("hf_model_name")).rsplit("/")[-1]
        if name not in OPEN_CLIP_TEXT:
            raise ValueError(
                f"expected a text_cfg.hf_model_name of {', '.join(OPEN_CLIP_TEXT)}, "
                f"got {text.get('hf_model_name')!r}"
            )
        sizes = read_config(f"{name}/config.json")
    kind = replace(OPEN_CLIP, length=text.get("context_length", OPEN_CLIP.length))
    return kind, BertConfig.from_dict(sizes)


def _config_of_shapes(file: Path, prefix: str, known: Mapping[str, Any]) -> BertConfig:
    """The sizes of a BERT from its tensors' shapes, with heads of 64 as in every BERT."""
    shapes = read_header(file)
    layer = re.compile(re.escape(prefix) + r"encoder\.layer\.(\d+)\.")
    layers = {int(found[1]) for key in shapes if (found := layer.match(key))}
    keys = {
        "words": f"{prefix}embeddings.word_embeddings.weight",
        "positions": f"{prefix}embeddings.position_embeddings.weight",
        "types": f"{prefix}embeddings.token_type_embeddings.weight",
        "inner": f"{prefix}encoder.layer.0.intermediate.dense.weight",
    }
    missing = [key for key in keys.values() if len(shapes.get(key, ())) != 2]
    if missing:
        raise WeightsError(f"{file}: expected matrices {', '.join(missing)}, got none")
    sizes = {name: shapes[key] for name, key in keys.items()}
    vocab_size, width = sizes["words"]
    types = known.get("type_vocab_size", sizes["types"][0])
    if width % 64 or sizes["types"][0] != types:
        raise WeightsError(
            f"{file}: expected a width that 64 divides and {types} token types, got {width} "
            f"and {sizes['types'][0]}"
        )
    return BertConfig.from_dict(
        {
            **known,
            "vocab_size": vocab_size,
            "hidden_size": width,
            "num_hidden_layers": len(layers),
            "num_attention_heads": width // 64,
            "intermediate_size": sizes["inner"][0],
            "max_position_embeddings": sizes["positions"][0],
            "type_vocab_size": types,
        }
    )
