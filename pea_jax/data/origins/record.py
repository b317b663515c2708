"""The output of an origin: unprocessed samples."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

#: Faults that several origins share.
NO_FILE = "file of the picture is missing"
OUTSIDE = "path of the picture leads out of the folder"
NO_PATH = "picture is neither bytes nor a path"
BAD_ROW = "row of the table can't be read"
TOO_LARGE = "file is too large"

#: Size limits in bytes: of an image file, and of text (a JSON file, a row of a table).
MAX_PICTURE = 256 * 2**20
MAX_TEXT = 2**20


@dataclass(frozen=True)
class Record:
    """An unprocessed sample.

    Attributes:
      name: of the sample in its shard; may repeat. "" for a fault of the whole shard.
      shard: label of the shard, unique in its split.
      image: the whole image file, or None.
      fields: all other values. Invalid UTF-8 in text becomes lone surrogates.
      fault: why the sample makes no row, with the same text for all faults of a kind, or None.
    """

    name: str
    shard: str
    image: bytes | None
    fields: Mapping[str, Any]
    fault: str | None = None


@runtime_checkable
class RecordShard(Protocol):
    """A frozen dataclass whose repr changes with its records: the recipe of a set contains it."""

    @property
    def source(self) -> str:
        """The file, or the split of a set, that it reads."""

    def __call__(self) -> Iterator[Record]:
        """Its records, always in the same order."""


def text_of(data: bytes) -> str:
    """Decode UTF-8, with lone surrogates for invalid bytes.

    Invalid bytes thus matter only in fields that are used, where they are found later.
    """
    return data.decode("utf-8-sig", "surrogateescape")


def json_object(data: bytes) -> dict[str, Any] | None:
    """Decode a JSON object; None if the data holds none."""
    try:
        value = json.loads(text_of(data))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
