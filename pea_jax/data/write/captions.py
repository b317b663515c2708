"""Cleaning of captions: Unicode normalisation, the paper's cleaning of Chinese, script checks."""

import functools
import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import opencc
import regex

#: Punctuation that native Chinese captions keep besides Chinese characters and digits.
PUNCTUATION = "，。、！？；：·…—～《》〈〉「」『』【】（）“”‘’％" + ",.!?;:-~()%&+/"

_DIGITS = "0-9０-９"
_FOREIGN = regex.compile(rf"[^\p{{Script=Han}}{_DIGITS}{regex.escape(PUNCTUATION)}]+")
#: Closing bracket or quote -> opening one.
_CLOSING = dict(zip("》〉」』】）)”’", "《〈「『【（(“‘", strict=True))
_SEPARATORS = frozenset("，。、！？；：·…—～,.!?;:-~&+/")
#: Separators of which only the first of a sequence is kept.
_REPEATED = frozenset("，、；：,;:-~&+/")
_CONTROL = regex.compile(r"[\p{Cc}\p{Zl}\p{Zp}]+")
_BLANKS = regex.compile(r"\s+")
_LETTER = regex.compile(r"\p{L}")

_GROUPS = json.loads(Path(__file__).with_name("scripts.json").read_text("utf-8"))
#: Language -> scripts.
SCRIPTS = {each: tuple(group["scripts"]) for group in _GROUPS for each in group["languages"]}
#: BCP 47 script tag -> scripts.
_TAGS = {each: tuple(group["scripts"]) for group in _GROUPS for each in group["tags"]}

#: Letters that exclude a language: a script share cannot exclude Japanese, which is half Han.
_NEVER = {"zh": regex.compile(r"[\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}]")}

_TRADITIONAL = {"hant", "tw", "hk", "mo"}


@dataclass(frozen=True)
class Cleaning:
    """Options for cleaning captions. Unicode NFC and single blanks always apply.

    Attributes:
      strip_native: keep only Chinese characters, digits and `PUNCTUATION` of native Chinese
        captions (method.md, "Official training settings").
      simplify: convert native Chinese captions to simplified Chinese, except for the traditional
        languages zh-Hant, zh-TW, zh-HK and zh-MO.
      min_script_share: minimum share of a caption's letters in the scripts of its language; 0 for
        no check.
    """

    strip_native: bool = True
    simplify: bool = True
    min_script_share: float = 0.3

    def __post_init__(self):
        if not 0 <= self.min_script_share <= 1:
            raise ValueError(
                f"captions.min_script_share: expected 0 to 1, got {self.min_script_share}"
            )

    def clean(self, text: str, language: str, *, native: bool) -> str:
        """The cleaned caption; "" if nothing is left."""
        text = normalise(text)
        primary, *tags = language.lower().split("-")
        if not native or primary != "zh":
            return text
        if self.strip_native:
            text = strip_chinese(text)
        if self.simplify and not _TRADITIONAL & set(tags):
            text = _simplifier().convert(text)
        return text

    def fits(self, text: str, language: str) -> bool:
        """Whether a caption is written in the script of its language.

        Any script fits a language that is not in `SCRIPTS` and whose code names no script. A
        caption without letters never fits.
        """
        if not self.min_script_share:
            return True
        letters = len(_LETTER.findall(text))
        primary, *tags = language.lower().split("-")
        scripts = next((_TAGS[tag] for tag in tags if tag in _TAGS), SCRIPTS.get(primary))
        if scripts is None or not letters:
            return letters > 0
        if "latn" not in tags and primary in _NEVER and _NEVER[primary].search(text):
            return False
        return len(_letters_of(scripts).findall(text)) >= self.min_script_share * letters


def normalise(text: str) -> str:
    """Unicode NFC, with single blanks for control characters and runs of blanks; stripped."""
    text = unicodedata.normalize("NFC", text)
    return _BLANKS.sub(" ", _CONTROL.sub(" ", text)).strip()


def strip_chinese(text: str) -> str:
    """Only the Chinese characters, digits and `PUNCTUATION` of a text, without blanks.

    Also removes empty brackets, and separators at the beginning or after another separator. Returns
    "" if no Chinese character is left.
    """
    kept: list[str] = []
    for letter in _FOREIGN.sub("", text):
        last = kept[-1] if kept else ""
        if last and _CLOSING.get(letter) == last:
            kept.pop()
            continue
        leading = not last and letter in _SEPARATORS
        if not leading and not (letter in _REPEATED and last in _REPEATED):
            kept.append(letter)
    text = "".join(kept)
    return text if regex.search(r"\p{Script=Han}", text) else ""


@functools.cache
def _letters_of(scripts: tuple[str, ...]) -> regex.Pattern:
    parts = "".join(rf"\p{{Script={script}}}" for script in scripts)
    return regex.compile(rf"[[{parts}]&&\p{{L}}]", regex.V1)


@functools.cache
def _simplifier() -> opencc.OpenCC:
    return opencc.OpenCC("t2s")
