"""What a data set holds: one row is one picture and what is said of it."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tensorflow_datasets as tfds

#: Why a row is not taken. The order is the order of the checks.
NO_IMAGE = "image is missing"
NO_LANGUAGE = "language is missing"
NO_CAPTION = "caption is missing"
NO_CAPTION_EN = "caption_en is missing"

#: One record of a split's index: what the choice of rows needs, without their images. `key_hash`
#: finds keys that occur twice; `language` is cut to no less than any BCP 47 code in use.
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


@dataclass(frozen=True)
class Row:
    """A picture with its caption, and its English caption where the two say the same.

    Attributes:
      key: names the row for good: unique in its data set, the same whenever the set is built.
      image: a whole JPEG, PNG or WebP file.
      caption: in `language`.
      caption_en: its English counterpart, "" where there is none.
      language: BCP 47 code of `caption`, such as "zh".
      native: the caption was written in its language for this picture; method.md's z = 1. Such a
        row is learnt by the diffusion loss, and its `caption_en`, if any, is not used.
      height: of the picture as it is shown (after EXIF rotation), pixels.
      width: of the picture as it is shown, pixels.
    """

    key: str
    image: bytes
    caption: str
    caption_en: str
    language: str
    native: bool
    height: int
    width: int


@runtime_checkable
class Described(Protocol):
    """What every row has, however its picture is stored; as in `Row`."""

    key: str
    caption: str
    caption_en: str
    language: str
    native: bool
    height: int
    width: int


@dataclass(frozen=True)
class Rejected:
    """What was found in place of a row; the set's report counts it.

    Attributes:
      key: names what was found, for who looks for it in the report's examples.
      reason: the same words for all of a kind, such as "image is missing".
    """

    key: str
    reason: str


def features() -> tfds.features.FeaturesDict:
    """The TFDS features of a row; the image stays encoded."""
    return tfds.features.FeaturesDict(
        {
            "key": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, 3)),
            "caption": tfds.features.Text(),
            "caption_en": tfds.features.Text(),
            "language": tfds.features.Text(),
            "native": tfds.features.Scalar(np.bool_),
            "height": tfds.features.Scalar(np.int32),
            "width": tfds.features.Scalar(np.int32),
        }
    )


def problem(row: Row) -> str | None:
    """Why a row can't be learnt from, or None. A blank caption counts as missing."""
    if not row.image:
        return NO_IMAGE
    if not row.language.strip():
        return NO_LANGUAGE
    if not row.caption.strip():
        return NO_CAPTION
    if not row.native and not row.caption_en.strip():
        return NO_CAPTION_EN
    return None


def to_example(row: Row) -> dict[str, object]:
    """A row as TFDS writes it. Bytes in a file object are stored as they are, an array is not."""
    return {
        "key": row.key,
        "image": io.BytesIO(row.image),
        "caption": row.caption,
        "caption_en": row.caption_en,
        "language": row.language,
        "native": row.native,
        "height": row.height,
        "width": row.width,
    }


def from_example(example: dict[str, object]) -> Row:
    """A row as TFDS reads it, its image not decoded."""
    return Row(
        key=example["key"].decode(),
        image=bytes(example["image"]),
        caption=example["caption"].decode(),
        caption_en=example["caption_en"].decode(),
        language=example["language"].decode(),
        native=bool(example["native"]),
        height=int(example["height"]),
        width=int(example["width"]),
    )


def index_record(row: Described) -> tuple:
    """A row's record of ``INDEX_DTYPE``.

    Raises:
      ValueError: the key is empty, or the language is longer than any language code.
    """
    longest = INDEX_DTYPE["language"].itemsize // np.dtype("U1").itemsize
    if not row.key:
        raise ValueError(f"a row needs a key, got an empty one (caption {row.caption!r})")
    if len(row.language) > longest:
        raise ValueError(
            f"language of row {row.key!r}: expected a code of at most {longest} letters, "
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
class Form:
    """How the rows of a data set are stored; small to pickle.

    Attributes:
      features: makes the TFDS features.
      to_example: a row as TFDS writes it.
      problem: why a row is not kept, or None.
    """

    features: Callable[[], tfds.features.FeaturesDict]
    to_example: Callable[[Any], dict[str, object]]
    problem: Callable[[Any], str | None]


#: Of `Row`.
PICTURES = Form(features, to_example, problem)
