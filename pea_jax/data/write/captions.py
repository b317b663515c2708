"""Captions made clean: one form of Unicode, the paper's cleaning of Chinese, the right script."""

import functools
import unicodedata
from dataclasses import dataclass

import opencc
import regex

#: What stays of a native Chinese caption beside Chinese characters and digits.
PUNCTUATION = "，。、！？；：·…—～《》〈〉「」『』【】（）“”‘’％" + ",.!?;:-~()%&+/"

_DIGITS = "0-9０-９"
_FOREIGN = regex.compile(rf"[^\p{{Script=Han}}{_DIGITS}{regex.escape(PUNCTUATION)}]+")
#: Closing brackets and quotes, each with its opening one.
_CLOSING = dict(zip("》〉」』】）)”’", "《〈「『【（(“‘", strict=True))
_SEPARATORS = frozenset("，。、！？；：·…—～,.!?;:-~&+/")
#: Of these one is enough where several meet.
_REPEATED = frozenset("，、；：,;:-~&+/")
_CONTROL = regex.compile(r"[\p{Cc}\p{Zl}\p{Zp}]+")
_BLANKS = regex.compile(r"\s+")
_LETTER = regex.compile(r"\p{L}")

#: Scripts in which a language is written.
SCRIPTS = {
    **dict.fromkeys(("zh", "yue"), ("Han", "Bopomofo")),
    "ja": ("Han", "Hiragana", "Katakana"),
    "ko": ("Hangul", "Han"),
    **dict.fromkeys(("ru", "uk", "be", "bg", "mk", "kk", "ky", "mn", "tg"), ("Cyrillic",)),
    "sr": ("Cyrillic", "Latin"),
    **dict.fromkeys(
        ("it", "en", "fr", "de", "es", "pt", "ca", "gl", "ro", "nl", "sv", "da", "no", "nb", "fi")
        + ("is", "et", "lv", "lt", "pl", "cs", "sk", "sl", "hr", "hu", "tr", "vi", "id", "ms")
        + ("sw", "tl", "eu", "sq", "ga", "cy", "af"),
        ("Latin",),
    ),
    "el": ("Greek",),
    **dict.fromkeys(("ar", "fa", "ur"), ("Arabic",)),
    **dict.fromkeys(("he", "iw", "yi"), ("Hebrew",)),
    **dict.fromkeys(("hi", "mr", "ne", "sa"), ("Devanagari",)),
    "bn": ("Bengali",),
    "ta": ("Tamil",),
    "te": ("Telugu",),
    "th": ("Thai",),
    "ka": ("Georgian",),
    "hy": ("Armenian",),
}

#: Letters that a language does not have, whatever their share: Japanese is half Han.
_NEVER = {"zh": regex.compile(r"[\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}]")}

#: What BCP 47 calls scripts.
_TAGS = {
    **dict.fromkeys(("hans", "hant", "hani"), ("Han", "Bopomofo")),
    "latn": ("Latin",),
    "cyrl": ("Cyrillic",),
    "arab": ("Arabic",),
    "deva": ("Devanagari",),
    "hang": ("Hangul",),
    "jpan": ("Han", "Hiragana", "Katakana"),
    "kore": ("Hangul", "Han"),
    "hira": ("Hiragana",),
    "kana": ("Katakana",),
    "grek": ("Greek",),
    "hebr": ("Hebrew",),
    "thai": ("Thai",),
}
_TRADITIONAL = {"hant", "tw", "hk", "mo"}


@dataclass(frozen=True)
class Cleaning:
    """What is done to captions, beside Unicode NFC and single blanks, which all get.

    Attributes:
      strip_native: of native Chinese captions only Chinese characters, digits and `PUNCTUATION`
        stay (method.md, "Official training settings").
      simplify: native Chinese captions become simplified Chinese, but for those whose language
        says that they are traditional (zh-Hant, zh-TW, zh-HK, zh-MO).
      min_script_share: of a caption's letters, how many at least belong to its language's scripts;
        0 asks for nothing.
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
        """A caption as it is stored; "" where nothing is left of it."""
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

        Of a language that `SCRIPTS` does not know, and whose code names no script, any will do;
        a caption without any letter never does.
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
    """Unicode NFC, control characters and runs of blanks as one blank, none at the ends."""
    text = unicodedata.normalize("NFC", text)
    return _BLANKS.sub(" ", _CONTROL.sub(" ", text)).strip()


def strip_chinese(text: str) -> str:
    """Chinese characters, digits and `PUNCTUATION` of a text, nothing else, blanks neither.

    What punctuation loses its content with that goes as well: empty brackets, separators at the
    beginning and after another one. "" where no Chinese character is left.
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
