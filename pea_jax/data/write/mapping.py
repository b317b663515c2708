"""The mapping of a sample's fields to a row.

A sample becomes one row or none. The name of a field is a key of the sample, or else a path into
nested values: "texts.zh", "captions.0".
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import regex

from pea_jax.data import schema
from pea_jax.data.origins.record import Record, text_of

NO_KEY = "key is missing"
NOT_UTF8 = "text is not UTF-8"
NOT_TEXT = "caption is no text"
NOT_NATIVE = "native is neither true nor false"
NOT_LANGUAGE = "language is no code"

NATIVE = ("unpaired", "always", "never")
OFFICIAL = "official"
PRESETS = ("", OFFICIAL)

#: The keys of the authors' tars (method.md, "Official training settings").
_ORIGINAL = ("caption_ori", "caption_ori_zh", "caption_ori_en")
_TRANSLATED, _ENGLISH = "caption_zh", "caption_en"

_HAN = regex.compile(r"\p{Script=Han}")
_OF_NEIGHBOURS = regex.compile(r"[\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}]")
_PLACE = re.compile(r"\{([^{}]*)\}")
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class UnfitError(ValueError):
    """A sample makes no row; the message is the reason, the same text for all of a kind."""


@dataclass(frozen=True)
class Texts:
    """The texts of a sample before cleaning; see `schema.Row`."""

    caption: str
    caption_en: str
    language: str
    native: bool


@dataclass(frozen=True)
class FieldMapping:
    """The fields of a sample that make a row.

    Attributes:
      preset: "official" uses the keys of the authors' tars, see `official`, and excludes settings
        of captions, language and native.
      key: of the row; {name} is the sample's name, {shard} the label of its shard, {FIELD} any
        field.
      caption: fields of the caption; the first that is not blank counts.
      caption_en: fields of the English caption.
      language: of every caption, BCP 47; "" to use `language_field`.
      language_field: field with the language.
      native: "unpaired" for rows without an English caption, "always", "never", or "" to use
        `native_field`.
      native_field: field with a boolean.
      aesthetic: field with the aesthetic score.
      watermark: field with the probability of a watermark.

    Raises:
      ValueError: names all invalid values.
    """

    preset: str = ""
    key: str = "{shard}/{name}"
    caption: Sequence[str] = ("caption", "txt")
    caption_en: Sequence[str] = ()
    language: str = "zh"
    language_field: str = ""
    native: str = "unpaired"
    native_field: str = ""
    aesthetic: str = "aesthetic_score"
    watermark: str = "watermark"

    def __post_init__(self):
        problems = []
        if self.preset not in PRESETS:
            problems.append(f"preset: expected one of {PRESETS}, got {self.preset!r}")
        if bool(self.language) == bool(self.language_field):
            problems.append(
                "language: expected either a code or, with language '', a language_field, "
                f"got {self.language!r} and {self.language_field!r}"
            )
        if self.language and not _is_code(self.language):
            problems.append(f"language: expected a code such as 'zh', got {self.language!r}")
        if self.native_field and self.native:
            problems.append(
                f"native: expected '' beside native_field {self.native_field!r}, "
                f"got {self.native!r}"
            )
        if not self.native_field and self.native not in NATIVE:
            problems.append(
                f"native: expected one of {NATIVE}, or '' and a native_field, got {self.native!r}"
            )
        if not self.caption:
            problems.append("caption: expected a field or more, got none")
        if not _PLACE.search(self.key):
            problems.append(f"key: expected {{name}} or another field in it, got {self.key!r}")
        if self.preset:
            decided = ("caption", "caption_en", "language_field", "native", "native_field")
            for part in fields(self):
                value = getattr(self, part.name)
                if part.name in decided and value != part.default:
                    problems.append(f"{part.name}: the preset decides it, got {value!r}")
            if self.language != "zh":
                problems.append(f"language: the preset is of 'zh', got {self.language!r}")
        if problems:
            raise ValueError("; ".join(f"mapping.{problem}" for problem in problems))

    def required(self) -> dict[str, Sequence[str]]:
        """Setting -> fields, of which every row needs one."""
        caption = (*_ORIGINAL, _TRANSLATED) if self.preset == OFFICIAL else self.caption
        needed = {"caption": caption, "language_field": (self.language_field,)}
        needed |= {"native_field": (self.native_field,)}
        places = set(_PLACE.findall(self.key)) - {"name", "shard"}
        needed |= {f"key={{{name}}}": (name,) for name in sorted(places)}
        return {setting: fields for setting, fields in needed.items() if any(fields)}

    def optional(self) -> dict[str, Sequence[str]]:
        """Setting -> fields that change rows but may be absent."""
        return {"caption_en": (_ENGLISH,) if self.preset == OFFICIAL else self.caption_en}

    def key_of(self, record: Record) -> str:
        """The key of a sample's row.

        Raises:
          UnfitError: a field of the key is missing.
        """
        values = {"name": record.name, "shard": record.shard}

        def put(place: re.Match) -> str:
            name = place[1]
            value = values[name] if name in values else look(record.fields, name)
            text = str(value) if isinstance(value, int | np.integer) else _text(value)
            if not text:
                raise UnfitError(NO_KEY)
            return text

        return _PLACE.sub(put, self.key)

    def texts(self, record: Record) -> Texts:
        """The texts of a sample; "" for a missing caption.

        Raises:
          UnfitError: a caption, the language or the native field has an invalid value.
        """
        if self.preset == OFFICIAL:
            return official(record.fields)
        caption = _first(record.fields, self.caption)
        caption_en = _first(record.fields, self.caption_en)
        if self.native_field:
            native = _truth(look(record.fields, self.native_field))
        else:
            native = self.native == "always" or (self.native == "unpaired" and not caption_en)
        language = self.language or _text(look(record.fields, self.language_field))
        if language and not _is_code(language):
            raise UnfitError(NOT_LANGUAGE)
        return Texts(caption, caption_en, language, native)


def official(sample: Mapping[str, Any]) -> Texts:
    """The captions of a sample with the authors' keys.

    The first Chinese text (with Chinese characters, without Japanese or Korean letters) of
    caption_ori, caption_ori_zh and caption_ori_en makes a native row, because a caption that was
    written for the image is worth more than a translation. All other samples make parallel rows of
    caption_zh and caption_en, which need both captions.
    """
    for name in _ORIGINAL:
        text = _text(sample.get(name))
        if _HAN.search(text) and not _OF_NEIGHBOURS.search(text):
            return Texts(text, "", "zh", native=True)
    return Texts(_text(sample.get(_TRANSLATED)), _text(sample.get(_ENGLISH)), "zh", native=False)


def look(sample: Mapping[str, Any], name: str) -> Any:
    """The value of a field, or None."""
    if name in sample:
        return sample[name]
    value: Any = sample
    for part in name.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list | tuple | np.ndarray) and part.isdecimal():
            value = value[int(part)] if int(part) < len(value) else None
        else:
            return None
    return value


def _first(sample: Mapping[str, Any], names: Sequence[str]) -> str:
    return next((text for name in names if (text := _text(look(sample, name)))), "")


def _text(value: Any) -> str:
    """A value as stripped text; "" for None.

    Raises:
      UnfitError: the value is not text, or was not UTF-8.
    """
    if isinstance(value, bytes):
        value = text_of(value)
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    if not isinstance(value, str):
        raise UnfitError(NOT_TEXT)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UnfitError(NOT_UTF8) from error
    return value.strip()


def _truth(value: Any) -> bool:
    if isinstance(value, bool | np.bool_ | int | np.integer) and value in (0, 1):
        return bool(value)
    if isinstance(value, str | bytes) and (word := _text(value).lower()) in _TRUTH:
        return _TRUTH[word]
    raise UnfitError(NOT_NATIVE)


def _is_code(language: str) -> bool:
    return len(language) <= schema.LONGEST_LANGUAGE and bool(_LANGUAGE.fullmatch(language))
