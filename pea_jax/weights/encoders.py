"""The kinds of language encoders that can be read: one row of `ENCODERS` each.

To add an architecture, write its module and its config in `models/text/` and add a row here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import transformers
from flax import nnx

from pea_jax.models.text import t5
from pea_jax.models.text.altclip import AltCLIPText, AltCLIPTextConfig
from pea_jax.models.text.bert import Bert, BertConfig
from pea_jax.models.text.clip import CLIPText, CLIPTextConfig
from pea_jax.weights import names, ruclip
from pea_jax.weights.tokenizers import open_clip_clean
from pea_jax.weights.youtokentome import RuCLIPTokenizer


@runtime_checkable
class TowerConfig(Protocol):
    """The shape of a text tower, as read from a config.json.

    Attributes:
      hidden_size: width of the tokens.
      longest: the most tokens that the tower takes; None for any number.
    """

    hidden_size: int
    longest: int | None

    def to_transformers(self) -> tuple[str, dict[str, Any]]:
        """The transformers class of this tower, and its config.json."""
        ...


@dataclass(frozen=True)
class EncoderKind:
    """How the files of one kind of encoder are named and read.

    Attributes:
      module: the text tower, built from its config.
      read_config: content of config.json -> config of the tower.
      stem: name of the weight file without suffix, see `locate.fetch_weights`.
      ignore: patterns of keys that the files hold beside the tower.
      aliases: other names of its keys.
      stacks: tensors that hold several parameters, see `names.unstacked`.
      exported: renamings of its keys in a folder for transformers.
      tokenizer: its class, where the folder need not name one.
      clean: what its authors do to a text before the tokenizer.
      length: default number of tokens of a prompt; None uses the tokenizer's own.
      beside: a small file that every repository of this kind has.
    """

    module: type[nnx.Module]
    read_config: Callable[[Mapping[str, Any]], TowerConfig]
    stem: str = "model"
    ignore: Sequence[str] = ()
    aliases: names.Aliases = names.ALIASES
    stacks: names.Stacks = ()
    exported: names.Aliases = ()
    tokenizer: type | None = None
    clean: Callable[[str], str] | None = None
    length: int | None = None
    beside: str = "config.json"


#: The defaults of transformers for a nested BERT config: BERT base.
_BERT_BASE = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
}

#: The image side of a CLIP, and its projections.
_CLIP_EXTRAS = (
    r"vision_model\..*",
    r"visual\..*",
    r"(visual|text)_projection(\.weight)?",
    r"logit_scale",
)
#: Poolers and heads of the pre-training. The adapter takes the last hidden state, before them.
_BERT_EXTRAS = (
    r"((bert|roberta|text_model)\.)?pooler\..*",
    r"lm_head\..*",
    r"cls\..*",
)


def _text_config(values: Mapping[str, Any]) -> dict[str, Any]:
    nested = values.get("text_config")
    return nested if isinstance(nested, dict) else {}


def _clip_config(values: Mapping[str, Any]) -> CLIPTextConfig:
    inner = _text_config(values).get("model_type", "clip_text_model")
    if inner != "clip_text_model":
        raise ValueError(f"expected a clip with a text_config of clip_text_model, got {inner}")
    return CLIPTextConfig.from_dict(values)


def _dual_config(values: Mapping[str, Any]) -> BertConfig:
    return BertConfig.from_dict(_BERT_BASE | _text_config(values))


def _chinese_clip_config(values: Mapping[str, Any]) -> BertConfig:
    return BertConfig.from_dict(_BERT_BASE | _text_config(values) | {"model_type": "bert"})


_BERT = EncoderKind(Bert, BertConfig.from_dict, ignore=_BERT_EXTRAS)
_CLIP = EncoderKind(CLIPText, _clip_config, ignore=_CLIP_EXTRAS)
_DUAL = EncoderKind(Bert, _dual_config, ignore=(*_BERT_EXTRAS, *_CLIP_EXTRAS))
_T5 = EncoderKind(
    t5.T5Encoder,
    t5.T5Config.from_dict,
    ignore=t5.BESIDE,
    tokenizer=transformers.T5Tokenizer,
    length=77,
)

#: The cn_clip package's own files have the same keys.
CHINESE_CLIP = replace(
    _DUAL, read_config=_chinese_clip_config, tokenizer=transformers.BertTokenizer, length=52
)
#: open_clip with a BERT of transformers.
OPEN_CLIP = EncoderKind(
    Bert,
    BertConfig.from_dict,
    stem="open_clip_model",
    ignore=(*_CLIP_EXTRAS, r"text\.(proj|transformer\.pooler)\..*", r"logit_bias"),
    aliases=((r"^text\.transformer\.", ""), *names.ALIASES),
    tokenizer=transformers.XLMRobertaTokenizer,
    clean=open_clip_clean,
    length=77,
    beside="tokenizer.json",
)
RU_CLIP = EncoderKind(
    CLIPText,
    ruclip.read_config,
    ignore=_CLIP_EXTRAS,
    aliases=(*ruclip.ALIASES, *names.ALIASES),
    stacks=ruclip.STACKS,
    tokenizer=RuCLIPTokenizer,
    length=77,
)

#: Encoders in transformers' format: model_type of config.json -> how the rest is read.
ENCODERS: Mapping[str, EncoderKind] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "clip": _CLIP,
    "clip_text_model": _CLIP,
    "chinese_clip": CHINESE_CLIP,
    "vision-text-dual-encoder": _DUAL,
    "altclip": EncoderKind(
        AltCLIPText,
        AltCLIPTextConfig.from_dict,
        ignore=(*_CLIP_EXTRAS, r"text_model\.roberta\.pooler\..*"),
        # The text class alone has other keys in transformers 5.
        exported=((r"^text_model\.", ""), (r"\.encoder\.layer\.", ".encoder.layers.")),
        tokenizer=transformers.XLMRobertaTokenizer,
        length=77,
    ),
    "t5": _T5,
    "mt5": _T5,
}
