"""What an origin yields: a sample as it was found, before anything is made of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

#: Faults that records of several origins have.
NO_FILE = "file of the picture is missing"
OUTSIDE = "path of the picture leads out of the folder"
NO_PATH = "picture is neither bytes nor a path"
BAD_ROW = "row of the table can't be read"
TOO_LARGE = "file is too large"

#: Bytes of the largest file of a picture that is read, and of text: a json, a row of a table.
MAX_PICTURE = 256 * 2**20
MAX_TEXT = 2**20


@dataclass(frozen=True)
class Record:
    """A sample as it was found.

    Attributes:
      name: of the sample in its shard; may occur more than once. "" is the shard as a whole.
      shard: what the shard is called, unique in its split.
      image: the whole file of the picture, None where there is none.
      fields: what else is known of it. Text may hold lone surrogates where it was no UTF-8.
      fault: why no row can be made of it, the same words for all of a kind; None: none is known.
    """

    name: str
    shard: str
    image: bytes | None
    fields: Mapping[str, Any]
    fault: str | None = None


@runtime_checkable
class RecordShard(Protocol):
    """What an origin gives: a frozen dataclass whose repr changes with what it would yield."""

    @property
    def source(self) -> str:
        """What it is read from: a file, or a split of a set."""

    def __call__(self) -> Iterator[Record]:
        """Its records, always the same in the same order."""


def text_of(data: bytes) -> str:
    """UTF-8 as text; bytes that are none become lone surrogates, which no good text has.

    So a field that nobody reads may be damaged, and the place that reads one finds it.
    """
    return data.decode("utf-8-sig", "surrogateescape")
