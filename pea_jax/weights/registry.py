"""Short names of the language encoders in the paper, and their repositories on the Hub."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ShortName:
    """What a short name stands for.

    Attributes:
      repository: its id on the Hub.
      length: tokens of a prompt; None uses that of its kind (`encoders.EncoderKind`).
      architecture: one of `encoder_files.OPEN_CLIP_TEXT`, where the repository has no config.
    """

    repository: str
    length: int | None = None
    architecture: str | None = None


# XLM-R large of an open_clip, about 100 languages; width 1024, 77 tokens. The repository has no
# config: its name states the architecture.
_MUL_CLIP = ShortName(
    "laion/CLIP-ViT-H-14-frozen-xlm-roberta-large-laion5B-s13B-b90k",
    architecture="xlm-roberta-large",
)
# Chinese: BERT (RoBERTa-wwm-ext-large) of Chinese-CLIP ViT-H; width 1024, 52 tokens.
_CHINESE_CLIP = ShortName("OFA-Sys/chinese-clip-vit-huge-patch14")

#: The encoders of the paper, by its names and by language. The paper does not name the repositories
#: of its Japanese, Korean, Russian and Italian CLIPs; these are our choice.
SHORT_NAMES: Mapping[str, ShortName] = {
    "mul_clip": _MUL_CLIP,
    "chinese_clip": _CHINESE_CLIP,
    # Chinese and English: XLM-R large with a projection; width 768, 77 tokens.
    "alt_clip": ShortName("BAAI/AltCLIP"),
    # The same for nine languages; AltCLIP's keys are an assumption.
    "alt_clip_m9": ShortName("BAAI/AltCLIP-m9"),
    # 101 languages: the encoder of mT5-xl; width 2048.
    "mt5": ShortName("google/mt5-xl"),
    "zh": _CHINESE_CLIP,
    # A CLIP text tower; width 768, 77 tokens.
    "ko": ShortName("Bingsu/clip-vit-large-patch14-ko"),
    # The text tower of ruCLIP, with CLIP's architecture; width 768, 77 tokens.
    "ru": ShortName("ai-forever/ruclip-vit-large-patch14-336"),
    # BERT base of CLIP-Italian; width 768. 77 tokens are our choice.
    "it": ShortName("clip-italian/clip-italian", length=77),
    # We know of no Japanese CLIP in a supported layout, so this is mul_clip.
    "ja": _MUL_CLIP,
}


def find(name: str) -> ShortName | None:
    """The entry of a short name or of a repository's id; None for other names and folders."""
    if name in SHORT_NAMES:
        return SHORT_NAMES[name]
    if Path(name).expanduser().exists():
        return None
    return next((one for one in SHORT_NAMES.values() if one.repository == name), None)
