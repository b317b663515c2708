"""The schema of a data set: one row is one image with its captions."""

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

#: Reasons for rejecting a row, in the order of the checks.
NO_IMAGE = "image is missing"
NO_LANGUAGE = "language is missing"
NO_CAPTION = "caption is missing"
NO_CAPTION_EN = "caption_en is missing"

#: One record of a split's index: what row selection needs, without the images. `key_hash` finds
#: repeated keys; `language` is long enough for every BCP 47 code in use.
INDEX_DTYPE = np.dtype(
    [
        ("key_hash", np.uint64),
        ("height", np.int32),
        ("width", np.int32),
        ("language", "U12"),
        ("native", np.bool_),
        ("parallel", np.bool_),
    ]
)
#: Characters of the longest language code.
LONGEST_LANGUAGE = INDEX_DTYPE["language"].itemsize // np.dtype("U1").itemsize

_TEXTS = ("key", "caption", "caption_en", "language")
_SIDES = ("height", "width")


@dataclass(frozen=True)
class AnyRow:
    """The fields that all rows share, whether they hold an image or latents.

    Attributes:
      key: permanent name of the row, unique in its data set.
      caption: in `language`.
      caption_en: its English counterpart, or "".
      language: BCP 47 code of `caption`, such as "zh".
      native: whether the caption was written in its language for this image; method.md's z = 1.
        Native rows are learnt with the diffusion loss, which does not use `caption_en`.
      height: of the image after EXIF rotation, pixels.
      width: of the image after EXIF rotation, pixels.
    """

    key: str
    caption: str
    caption_en: str
    language: str
    native: bool
    height: int
    width: int


@dataclass(frozen=True)
class Row(AnyRow):
    """An image with its caption and, for parallel rows, an English caption of the same meaning.

    Attributes:
      image: a whole JPEG, PNG or WebP file.
    """

    image: bytes


@dataclass(frozen=True)
class Rejected:
    """A rejection in place of a row; the set's report counts it.

    Attributes:
      key: identifies the sample in the examples of the report.
      reason: the same text for all samples of a kind, such as "image is missing".
    """

    key: str
    reason: str


def shared_features() -> dict[str, tfds.features.FeatureConnector]:
    """The TFDS features of `AnyRow`."""
    return {
        "native": tfds.features.Scalar(np.bool_),
        **{name: tfds.features.Text() for name in _TEXTS},
        **{name: tfds.features.Scalar(np.int32) for name in _SIDES},
    }


def features() -> tfds.features.FeaturesDict:
    """The TFDS features of a row. The image stays encoded."""
    image = tfds.features.Image(shape=(None, None, 3))
    return tfds.features.FeaturesDict({"image": image, **shared_features()})


def problem(row: AnyRow) -> str | None:
    """The reason for rejecting a row, or None. A blank caption counts as missing."""
    if isinstance(row, Row) and not row.image:
        return NO_IMAGE
    if not row.language.strip():
        return NO_LANGUAGE
    if not row.caption.strip():
        return NO_CAPTION
    if not row.native and not row.caption_en.strip():
        return NO_CAPTION_EN
    return None


def to_example(row: Row) -> dict[str, object]:
    """A row as TFDS writes it. TFDS stores a file object unchanged; it would encode an array."""
    return {**vars(row), "image": io.BytesIO(row.image)}


def shared_fields(example: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `AnyRow` in a TFDS example."""
    return {
        "native": bool(example["native"]),
        **{name: example[name].decode() for name in _TEXTS},
        **{name: int(example[name]) for name in _SIDES},
    }


def from_example(example: Mapping[str, Any]) -> Row:
    """A row as TFDS reads it, with the image still encoded."""
    return Row(image=bytes(example["image"]), **shared_fields(example))


def index_record(row: AnyRow) -> tuple:
    """A row's record of ``INDEX_DTYPE``.

    Raises:
      ValueError: the key is empty, or the language code is too long.
    """
    if not row.key:
        raise ValueError(f"a row needs a key, got an empty one (caption {row.caption!r})")
    if len(row.language) > LONGEST_LANGUAGE:
        raise ValueError(
            f"language of row {row.key!r}: expected a code of at most {LONGEST_LANGUAGE} letters, "
            f"got {row.language!r}"
        )
    digest = hashlib.blake2b(row.key.encode(), digest_size=8).digest()
    return (
        int.from_bytes(digest, "little"),
        row.height,
        row.width,
        row.language,
        row.native,
        not row.native and bool(row.caption_en.strip()),
    )


@dataclass(frozen=True)
class RowFormat:
    """How the rows of a data set are stored; small to pickle.

    Attributes:
      features: makes the TFDS features.
      to_example: converts a row for TFDS.
    """

    features: Callable[[], tfds.features.FeaturesDict]
    to_example: Callable[[Any], dict[str, object]]


#: The format of `Row`.
PICTURES = RowFormat(features, to_example)
