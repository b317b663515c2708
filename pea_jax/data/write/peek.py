"""A look at the first samples, before a set is made of all: have they the fields that are named?

A misspelt field makes no error by itself: captions are missing then, or every row is native.
"""

import itertools
from collections.abc import Mapping, Sequence

from pea_jax.data.origins.record import Record, RecordShard
from pea_jax.data.write.filters import Filters
from pea_jax.data.write.mapping import FieldMapping, look

#: How many shards are looked into, evenly spread, and how many samples of each.
SHARDS, SAMPLES = 8, 32

#: How many fields of the samples are told.
_SHOWN = 20


def samples(shards: Sequence[RecordShard]) -> list[Record]:
    """The first good samples of some of the shards."""
    step = max(1, -(-len(shards) // SHARDS))
    found: list[Record] = []
    for shard in shards[::step]:
        found += [record for record in itertools.islice(shard(), SAMPLES) if record.fault is None]
    return found


def missing(
    records: Sequence[Record], image: str, mapping: FieldMapping, filters: Filters
) -> tuple[list[str], list[str]]:
    """What is asked for and in none of the samples, one line each.

    Args:
      records: of `samples`; where there are none, nothing is missing.
      image: the field of the picture; "" where it is no field.
      mapping: which fields hold what.
      filters: that may ask for more.

    Returns:
      What no row can do without, and what changes what rows are.
    """
    if not records:
        return [], []
    there = sorted({name for record in records for name in record.fields})
    shown = ", ".join(there[:_SHOWN]) + (", ..." if len(there) > _SHOWN else "")

    def told(what: str, names: Sequence[str]) -> str:
        lacking = " and no ".join(map(repr, names))
        return f"{what}: the first {len(records)} samples have no {lacking}, but {shown or 'none'}"

    def absent(fields: Mapping[str, Sequence[str]]) -> list[str]:
        return [
            told(f"prepare.mapping.{what}", names)
            for what, names in fields.items()
            if names
            and all(look(record.fields, name) is None for record in records for name in names)
        ]

    errors = absent(mapping.required())
    if image and all(record.image is None for record in records):
        errors.insert(0, told("prepare.image", [image]))
    return errors, absent({**mapping.optional(), **filters.scores(mapping)})
