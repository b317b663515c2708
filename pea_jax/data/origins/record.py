"""What an origin yields: a sample as it was found, before anything is made of it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

#: Yields the records of one shard.
RecordShard = Callable[[], Iterator["Record"]]


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


def text_of(data: bytes) -> str:
    """UTF-8 as text; bytes that are none become lone surrogates, which no good text has.

    So a field that nobody reads may be damaged, and the place that reads one finds it.
    """
    return data.decode("utf-8-sig", "surrogateescape")
