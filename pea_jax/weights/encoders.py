"""The layouts in which the authors of language encoders publish them.

A layout is known by the small files of a folder, in this order:

    config.json             transformers' layouts, by model_type; or ruCLIP's own
    open_clip_config.json   open_clip with a text tower of transformers, known by its name
    open_clip_*             the same without a config: the shapes of the weights say the sizes
    clip_cn_*.pt, vocab.txt the cn_clip package's own files: the shapes say the sizes
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers

from pea_jax.models.text import t5
from pea_jax.models.text.altclip import AltCLIPText, AltCLIPTextConfig
from pea_jax.models.text.bert import Bert, BertConfig
from pea_jax.models.text.clip import CLIPText, CLIPTextConfig
from pea_jax.models.text.t5 import T5Config, T5Encoder
from pea_jax.weights import names
from pea_jax.weights.errors import WeightsError
from pea_jax.weights.load import read_header
from pea_jax.weights.locate import TOKENIZER_FILES, fetch_weights, read_json, resolve
from pea_jax.weights.registry import find
from pea_jax.weights.tokenizers import open_clip_clean
from pea_jax.weights.youtokentome import RuCLIPTokenizer

TowerConfig = BertConfig | CLIPTextConfig | AltCLIPTextConfig | T5Config
Tower = Bert | CLIPText | AltCLIPText | T5Encoder


#: Text towers that an open_clip_config.json knows by name alone: the sizes of Conneau et al. 2020
#: (arXiv 1911.02116), as FacebookAI/xlm-roberta-base and -large have them in their config.json.
_XLM_R = {
    "model_type": "xlm-roberta",
    "vocab_size": 250002,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "hidden_act": "gelu",
}
OPEN_CLIP_TEXT: Mapping[str, Mapping[str, Any]] = {
    "xlm-roberta-base": _XLM_R
    | {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
    "xlm-roberta-large": _XLM_R
    | {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}

#: What transformers leaves out of a nested BERT config: the sizes of BERT base, its defaults.
_BERT_BASE = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
}

#: The other side of a CLIP, and what joins the two.
_CLIP_EXTRAS = (
    r"vision_model\..*",
    r"visual\..*",
    r"(visual|text)_projection(\.weight)?",
    r"logit_scale",
)
#: Poolers and heads of the pre-training. The adapter sees the last hidden state, before them.
_BERT_EXTRAS = (
    r"((bert|roberta|text_model)\.)?pooler\..*",
    r"lm_head\..*",
    r"cls\..*",
)


@dataclass(frozen=True)
class Layout:
    """How the files of a kind of encoder are named and read.

    Attributes:
      tower: its module.
      stem: the name of its weights without the suffix, see `locate.weight_files`.
      ignore: keys that its files hold beside the tower.
      aliases: other names of its keys.
      stacks: tensors of it that hold several parameters, see `names.unstacked`.
      tokenizer: its class, where the folder need not name one.
      clean: what its authors did to a text before the tokenizer.
      length: tokens of a prompt where nobody says otherwise; None is the tokenizer's own.
      beside: a file that every repository of it has beside its weights.
    """

    tower: type[Tower]
    stem: str = "model"
    ignore: Sequence[str] = ()
    aliases: names.Aliases = names.ALIASES
    stacks: names.Stacks = ()
    tokenizer: type | None = None
    clean: Callable[[str], str] | None = None
    length: int | None = None
    beside: str = "config.json"


_BERT = Layout(Bert, ignore=_BERT_EXTRAS)
_CLIP = Layout(CLIPText, ignore=_CLIP_EXTRAS)
_DUAL = Layout(Bert, ignore=(*_BERT_EXTRAS, *_CLIP_EXTRAS))
_CHINESE = replace(_DUAL, tokenizer=transformers.BertTokenizer, length=52)
_ALT = Layout(
    AltCLIPText,
    ignore=(*_CLIP_EXTRAS, r"text_model\.roberta\.pooler\..*"),
    tokenizer=transformers.XLMRobertaTokenizer,
    length=77,
)
_T5 = Layout(
    T5Encoder,
    ignore=t5.BESIDE,
    tokenizer=transformers.T5Tokenizer,
    length=77,
)
_OPEN_CLIP = Layout(
    Bert,
    stem="open_clip_model",
    ignore=(*_CLIP_EXTRAS, r"text\.(proj|transformer\.pooler)\..*", r"logit_bias"),
    aliases=((r"^text\.transformer\.", ""), *names.ALIASES),
    tokenizer=transformers.XLMRobertaTokenizer,
    clean=open_clip_clean,
    length=77,
    beside="tokenizer.json",
)
#: OpenAI's own layout of CLIP, which keeps the three projections of an attention in one tensor.
_RU_CLIP = Layout(
    CLIPText,
    ignore=_CLIP_EXTRAS,
    aliases=(
        (r"^token_embedding\.", "embeddings.token_embedding."),
        (r"^positional_embedding$", "embeddings.position_embedding.weight"),
        (r"^transformer\.resblocks\.", "encoder.layers."),
        (r"^(encoder\.layers\.\d+\.)ln_([12])\.", r"\1layer_norm\2."),
        (r"^(encoder\.layers\.\d+\.)attn\.", r"\1self_attn."),
        (r"^(encoder\.layers\.\d+\.mlp\.)c_fc\.", r"\1fc1."),
        (r"^(encoder\.layers\.\d+\.mlp\.)c_proj\.", r"\1fc2."),
        (r"^ln_final\.", "final_layer_norm."),
        *names.ALIASES,
    ),
    stacks=(
        (
            r"^(transformer\..*\.attn\.)in_proj_(weight|bias)$",
            [rf"\1{part}_proj.\2" for part in "qkv"],
        ),
    ),
    tokenizer=RuCLIPTokenizer,
    length=77,
)

_CN_CLIP_FILES = "clip_cn_*.pt"


@dataclass(frozen=True)
class Published:
    """An encoder of which the small files have been read.

    Attributes:
      folder: where they are.
      layout: how the others are read.
      tower: its shape.
      source: the folder or the repository that has the weights.
      file: of the weights, where they go by no stem.
    """

    folder: Path
    layout: Layout
    tower: TowerConfig
    source: str | Path
    file: Path | None = None

    def fetch(self, *, half: bool, revision: str | None) -> list[Path]:
        """The files of its weights, fetched where they are not here yet."""
        if self.file is not None:
            return [self.file]
        stems = {"": self.layout.stem}
        return fetch_weights(
            self.source, stems, half=half, revision=revision, beside=self.layout.beside
        )[""]


def read_published(
    name: str | Path, *, revision: str | None = None, published_too: bool = False
) -> Published:
    """Reads (and fetches) the small files of one encoder.

    Args:
      name: of `registry.ENCODERS`, a folder, or the id of a repository on the Hub.
      revision: on the Hub.
      published_too: as for `locate.resolve`.

    Raises:
      WeightsError: files that are missing, a layout or a value that is not supported.
    """
    registered = find(name)
    source = registered.repository if registered else name
    patterns = ("config.json", "open_clip_config.json", *TOKENIZER_FILES)
    folder = resolve(source, patterns=patterns, revision=revision, published_too=published_too)
    try:
        layout, tower, file = _read(folder, registered.architecture if registered else None)
    except WeightsError:
        raise
    except ValueError as error:
        raise WeightsError(f"{folder}: {error}") from error
    if registered and registered.length is not None:
        layout = replace(layout, length=registered.length)
    return Published(folder, layout, tower, source, file)


def _read(folder: Path, architecture: str | None) -> tuple[Layout, TowerConfig, Path | None]:
    """The layout, the shape, and the file of the weights where they go by no stem."""
    if (folder / "config.json").is_file():
        return *_of_transformers(folder, read_json(folder / "config.json")), None
    if (folder / "open_clip_config.json").is_file():
        return *_of_open_clip(folder, read_json(folder / "open_clip_config.json")), None
    if architecture is not None:
        return _OPEN_CLIP, BertConfig.from_dict(OPEN_CLIP_TEXT[architecture]), None
    if files := sorted(folder.glob("open_clip_*model.*")):
        return _OPEN_CLIP, _from_shapes(files[0], "text.transformer.", _XLM_R), None
    if (files := sorted(folder.glob(_CN_CLIP_FILES))) and (folder / "vocab.txt").is_file():
        if len(files) > 1:
            raise WeightsError(f"{folder}: expected one {_CN_CLIP_FILES}, got {len(files)}")
        return _CHINESE, _from_shapes(files[0], "bert.", {"model_type": "bert"}), files[0]
    raise WeightsError(
        f"{folder}: expected config.json, open_clip_config.json, open_clip_model.safetensors, or "
        f"{_CN_CLIP_FILES} with vocab.txt, got {_listing(folder)}"
    )


def _listing(folder: Path) -> str:
    return ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing"


def _of_transformers(folder: Path, values: dict[str, Any]) -> tuple[Layout, TowerConfig]:
    """The layout and the shape that a config.json of transformers tells of."""
    kind = values.get("model_type")
    nested = values.get("text_config")
    nested = nested if isinstance(nested, dict) else {}
    match kind:
        case "bert" | "roberta" | "xlm-roberta":
            return _BERT, BertConfig.from_dict(values)
        case "clip" | "clip_text_model":
            inner = nested.get("model_type", "clip_text_model")
            if inner != "clip_text_model":
                raise WeightsError(
                    f"{folder}: expected a clip with a text_config of clip_text_model, got {inner}"
                )
            return _CLIP, CLIPTextConfig.from_dict(values)
        case "chinese_clip":
            return _CHINESE, BertConfig.from_dict(_BERT_BASE | nested | {"model_type": "bert"})
        case "vision-text-dual-encoder":
            return _DUAL, BertConfig.from_dict(_BERT_BASE | nested)
        case "altclip":
            return _ALT, AltCLIPTextConfig.from_dict(values)
        case "t5" | "mt5":
            return _T5, T5Config.from_dict(values)
        case None if "transformer_width" in values:
            return _RU_CLIP, _of_ru_clip(values)
    raise WeightsError(f"{folder}: expected a model_type of {', '.join(KINDS)}, got {kind!r}")


#: The kinds of config.json that are read.
KINDS = (
    "bert",
    "roberta",
    "xlm-roberta",
    "clip",
    "clip_text_model",
    "chinese_clip",
    "vision-text-dual-encoder",
    "altclip",
    "t5",
    "mt5",
)


def _of_ru_clip(values: dict[str, Any]) -> CLIPTextConfig:
    """The shape of the text tower that ruCLIP's config.json tells of (its ruclip/model.py)."""
    fields = {
        "vocab_size": "vocab_size",
        "hidden_size": "transformer_width",
        "num_hidden_layers": "transformer_layers",
        "num_attention_heads": "transformer_heads",
        "max_position_embeddings": "context_length",
    }
    missing = [field for field in fields.values() if type(values.get(field)) is not int]
    if missing:
        raise ValueError(f"ruCLIP config: expected numbers {', '.join(missing)}, got none")
    sizes = {name: values[field] for name, field in fields.items()}
    width = sizes["hidden_size"]
    return CLIPTextConfig.from_dict(
        {**sizes, "intermediate_size": 4 * width, "hidden_act": "quick_gelu", "eos_token_id": 3}
    )


def _of_open_clip(folder: Path, values: dict[str, Any]) -> tuple[Layout, BertConfig]:
    """The layout, with its context length, and the shape that an open_clip_config.json tells of."""
    text = values.get("model_cfg", values).get("text_cfg", {})
    name = str(text.get("hf_model_name")).rsplit("/")[-1]
    sizes = text.get("hf_model_config") or OPEN_CLIP_TEXT.get(name)
    if sizes is None:
        raise WeightsError(
            f"{folder}: expected a text_cfg.hf_model_name of {', '.join(OPEN_CLIP_TEXT)}, "
            f"got {text.get('hf_model_name')!r}"
        )
    layout = replace(_OPEN_CLIP, length=text.get("context_length", _OPEN_CLIP.length))
    return layout, BertConfig.from_dict(sizes)


def _from_shapes(file: Path, prefix: str, known: Mapping[str, Any]) -> BertConfig:
    """The sizes of a BERT from its tensors' shapes; its heads are 64 wide, as in every BERT."""
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
