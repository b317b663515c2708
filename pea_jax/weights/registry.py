"""The language encoders of the paper by their short names, and where the Hub has them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Registered:
    """An encoder that has a short name here.

    Attributes:
      repository: its id on the Hub.
      about: what it is, and what of it is assumed rather than known from its published files.
      length: tokens of a prompt; None takes the layout's.
      architecture: a key of `encoders.OPEN_CLIP_TEXT`, where the repository has no config.
    """

    repository: str
    about: str
    length: int | None = None
    architecture: str | None = None


_MUL_CLIP = Registered(
    "laion/CLIP-ViT-H-14-frozen-xlm-roberta-large-laion5B-s13B-b90k",
    "XLM-R large of an open_clip, about 100 languages; width 1024, 77 tokens. The repository has "
    "no config: its name says the architecture.",
    architecture="xlm-roberta-large",
)
_CHINESE_CLIP = Registered(
    "OFA-Sys/chinese-clip-vit-huge-patch14",
    "Chinese: BERT (RoBERTa-wwm-ext-large) of Chinese-CLIP ViT-H; width 1024, 52 tokens.",
)

#: The encoders of the paper, by its names and by language. The paper does not say by which
#: repository its Japanese, Korean, Russian and Italian CLIPs are had; those here are ours to name.
ENCODERS: Mapping[str, Registered] = {
    "mul_clip": _MUL_CLIP,
    "chinese_clip": _CHINESE_CLIP,
    "alt_clip": Registered(
        "BAAI/AltCLIP",
        "Chinese and English: XLM-R large with a projection; width 768, 77 tokens.",
    ),
    "alt_clip_m9": Registered(
        "BAAI/AltCLIP-m9",
        "The same for nine languages. That it has AltCLIP's keys is assumed.",
    ),
    "mt5": Registered("google/mt5-xl", "101 languages: the encoder of mT5-xl; width 2048."),
    "zh": _CHINESE_CLIP,
    "ko": Registered(
        "Bingsu/clip-vit-large-patch14-ko",
        "Korean: a CLIP text tower; width 768, 77 tokens.",
    ),
    "ru": Registered(
        "ai-forever/ruclip-vit-large-patch14-336",
        "Russian: the text tower of ruCLIP, which has CLIP's architecture; width 768, 77 tokens.",
    ),
    "it": Registered(
        "clip-italian/clip-italian",
        "Italian: BERT base of CLIP-Italian; width 768. 77 tokens is our choice.",
        length=77,
    ),
    "ja": replace(
        _MUL_CLIP,
        about="No Japanese CLIP is known to us in a layout that is read here: this is mul_clip.",
    ),
}


def find(name: str | Path) -> Registered | None:
    """The entry of a short name or of a repository's id; None for other names and folders."""
    if name in ENCODERS:
        return ENCODERS[str(name)]
    if Path(name).expanduser().exists():
        return None
    return next((one for one in ENCODERS.values() if one.repository == str(name)), None)
