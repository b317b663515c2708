"""A language encoder: the text tower that reads prompts in another language."""

from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from pea_jax import parallel
from pea_jax.models.bert import Bert, BertConfig
from pea_jax.models.clip import CLIPText, CLIPTextConfig
from pea_jax.weights.load import WeightsError, load_module
from pea_jax.weights.locate import (
    TOKENIZER_FILES,
    fetch_weights,
    prefers_half,
    read_json,
    resolve,
)
from pea_jax.weights.tokenizer import Tokenizer

_TOWERS = {
    "bert": (BertConfig, Bert),
    "roberta": (BertConfig, Bert),
    "xlm-roberta": (BertConfig, Bert),
    "clip_text_model": (CLIPTextConfig, CLIPText),
    "clip": (CLIPTextConfig, CLIPText),
}

#: What a published file holds beside the tower: pooler and heads of the pre-training, the image
#: side of a CLIP. The adapter sees the last hidden state, before all of them.
_EXTRAS = (
    r"((bert|roberta)\.)?pooler\..*",
    r"lm_head\..*",
    r"cls\..*",
    r"vision_model\..*",
    r"(visual|text)_projection\.weight",
    r"logit_scale",
)


@dataclass(frozen=True)
class LanguageConfig:
    """What the small files of a language encoder say.

    Attributes:
      tower: its shape.
      width: of the tokens that it gives, which an adapter must take.
      longest: the most tokens that it takes.
      folder: where the files are.
    """

    tower: BertConfig | CLIPTextConfig
    width: int
    longest: int
    folder: Path


@dataclass(frozen=True)
class LanguageEncoder:
    """A frozen text tower with its tokenizer.

    Attributes:
      tower: ids and mask [B, L] -> tokens [B, L, width].
      tokenizer: of the tower.
      width: of the tokens.
      folder: where the files are.
    """

    tower: Bert | CLIPText
    tokenizer: Tokenizer
    width: int
    folder: Path


def read_language_config(name: str | Path, *, revision: str | None = None) -> LanguageConfig:
    """Reads (and fetches) the small files alone, so that what doesn't fit is refused early.

    Args:
      name: a folder in transformers' format, "tinyworld/xlm-roberta", or an id on the Hub.
      revision: on the Hub.

    Raises:
      ValueError: a file that is missing, an architecture or a value that is not supported.
    """
    folder = resolve(name, patterns=("config.json", *TOKENIZER_FILES), revision=revision)
    values = read_json(folder / "config.json")
    kind = values.get("model_type")
    if kind not in _TOWERS:
        raise WeightsError(f"{folder}: expected a model_type of {', '.join(_TOWERS)}, got {kind!r}")
    try:
        tower = _TOWERS[kind][0].from_dict(values)
    except ValueError as error:
        raise WeightsError(f"{folder}: {error}") from error
    longest = tower.longest if isinstance(tower, BertConfig) else tower.max_position_embeddings
    return LanguageConfig(tower, tower.hidden_size, longest, folder)


def load_language_encoder(
    name: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
    max_length: int | None = None,
    revision: str | None = None,
) -> LanguageEncoder:
    """Loads a language encoder, its frozen weights spread over `mesh`.

    Args:
      name: as for `read_language_config`.
      dtype: of the weights and of the computation; a 16-bit one reads fp16 files where there are.
      mesh: None leaves the weights uncommitted on the default device.
      max_length: tokens that a prompt is padded to and cut at; None takes the tokenizer's own.
      revision: on the Hub.

    Raises:
      ValueError: as for `read_language_config`; a max_length that the tower can't take; weights
        that are missing or don't fit.
    """
    config = read_language_config(name, revision=revision)
    tokenizer = Tokenizer.from_folder(config.folder, max_length)
    if tokenizer.max_length > config.longest:
        raise WeightsError(
            f"{config.folder}: expected a max_length of at most {config.longest} tokens, "
            f"got {tokenizer.max_length}"
        )
    build = Bert if isinstance(config.tower, BertConfig) else CLIPText
    tower = load_module(
        lambda: build(config.tower, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=dtype),
        fetch_weights(name, {"": "model"}, half=prefers_half(dtype), revision=revision)[""],
        sharding=None if mesh is None else parallel.parameter_sharding(mesh),
        ignore=_EXTRAS,
    )
    return LanguageEncoder(tower, tokenizer, config.width, config.folder)
