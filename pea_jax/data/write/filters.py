"""Filters of rows by language, image size, scores and caption length."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pea_jax.data.write.mapping import FieldMapping, Texts, UnfitError, look

OTHER_LANGUAGE = "language is not asked for"
SHORT, LONG = "caption is too short", "caption is too long"
SHORT_EN, LONG_EN = "caption_en is too short", "caption_en is too long"
SMALL = "area is too small"
STRETCHED = "aspect is too far from square"
NO_AESTHETIC, UGLY = "aesthetic score is missing", "aesthetic score is too low"
NO_WATERMARK, WATERMARKED = "watermark score is missing", "watermark is too likely"


@dataclass(frozen=True)
class Filters:
    """Bounds for rows; see method.md, "Official training settings".

    Attributes:
      languages: accepted languages; () for all.
      min_area: height times width, pixels.
      max_aspect: longer side over shorter side; 0 for no bound.
      min_aesthetic: for parallel rows, score in the field `mapping.aesthetic`; 0 for no bound.
      max_watermark: for parallel rows, score in the field `mapping.watermark`; 1 for no bound.
      min_characters: of the cleaned caption.
      max_characters: of the cleaned caption; 0 for no bound.
      min_characters_en: of the English caption of parallel rows.
      max_characters_en: of the English caption of parallel rows; 0 for no bound.

    Raises:
      ValueError: names all invalid bounds.
    """

    languages: Sequence[str] = ()
    min_area: int = 0
    max_aspect: float = 0.0
    min_aesthetic: float = 0.0
    max_watermark: float = 1.0
    min_characters: int = 1
    max_characters: int = 0
    min_characters_en: int = 1
    max_characters_en: int = 0

    def __post_init__(self):
        problems = [
            f"filters.{name}: expected 0 or more, got {getattr(self, name)}"
            for name in ("min_area", "max_aspect", "min_aesthetic", "min_characters")
            + ("max_characters", "min_characters_en", "max_characters_en")
            if not getattr(self, name) >= 0
        ]
        if 0 < self.max_aspect < 1:
            problems.append(f"filters.max_aspect: expected 1 or more, or 0, got {self.max_aspect}")
        if not 0 <= self.max_watermark <= 1:
            problems.append(f"filters.max_watermark: expected 0 to 1, got {self.max_watermark}")
        for end in ("", "_en"):
            low, high = (getattr(self, f"{name}_characters{end}") for name in ("min", "max"))
            if 0 < high < low:
                problems.append(
                    f"filters.max_characters{end}: expected 0, or {low} or more, got {high}"
                )
        if problems:
            raise ValueError("; ".join(problems))

    def scores(self, mapping: FieldMapping) -> dict[str, Sequence[str]]:
        """The fields of the required scores: score -> fields."""
        required = {
            "aesthetic": self.min_aesthetic > 0 and mapping.aesthetic,
            "watermark": self.max_watermark < 1 and mapping.watermark,
        }
        return {score: (field,) for score, field in required.items() if field}

    def check_texts(self, texts: Texts) -> None:
        """Raises UnfitError for another language, and for lengths out of bounds."""
        if self.languages and texts.language not in self.languages:
            raise UnfitError(OTHER_LANGUAGE)
        _check_length(texts.caption, self.min_characters, self.max_characters, SHORT, LONG)
        if not texts.native:
            low, high = self.min_characters_en, self.max_characters_en
            _check_length(texts.caption_en, low, high, SHORT_EN, LONG_EN)

    def check_scores(
        self, fields: Mapping[str, Any], mapping: FieldMapping, *, native: bool
    ) -> None:
        """Raises UnfitError for a parallel row whose scores are missing or out of bounds."""
        if native:
            return
        needs_aesthetic, needs_watermark = self.min_aesthetic > 0, self.max_watermark < 1
        if needs_aesthetic and _score(fields, mapping.aesthetic, NO_AESTHETIC) < self.min_aesthetic:
            raise UnfitError(UGLY)
        if needs_watermark and _score(fields, mapping.watermark, NO_WATERMARK) > self.max_watermark:
            raise UnfitError(WATERMARKED)

    def check_size(self, height: int, width: int) -> None:
        """Raises UnfitError for an image that is too small or too far from square."""
        if height * width < self.min_area:
            raise UnfitError(SMALL)
        if self.max_aspect and max(height, width) > self.max_aspect * min(height, width):
            raise UnfitError(STRETCHED)


def _check_length(text: str, low: int, high: int, short: str, long: str) -> None:
    if len(text) < low:
        raise UnfitError(short)
    if high and len(text) > high:
        raise UnfitError(long)


def _score(fields: Mapping[str, Any], name: str, missing: str) -> float:
    """A finite number, which may be written as text.

    Raises:
      UnfitError: with the reason `missing`.
    """
    try:
        number = float(look(fields, name))
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UnfitError(missing)
    return number
