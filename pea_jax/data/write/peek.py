"""A check of the first samples before a set is built: do they have the configured fields?

A misspelt field raises no error by itself: captions would be missing, or every row native.
"""

import itertools
from collections.abc import Mapping, Sequence

from pea_jax.data.origins.record import Record, RecordShard
from pea_jax.data.write.filters import Filters
from pea_jax.data.write.mapping import FieldMapping, look

#: Number of shards to check, evenly spread, and of samples in each.
SHARDS, SAMPLES = 8, 32

#: Fields of the samples in a message, at most.
_MAX_FIELDS = 20


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
    """The configured fields that none of the samples has, one line each.

    Args:
      records: from `samples`; if empty, nothing is reported.
      image: field of the image; "" if the image is not a field.
      mapping: the configured fields.
      filters: may need scores.

    Returns:
      Errors for fields that every row needs, and warnings for fields that change rows.
    """
    if not records:
        return [], []
    names = sorted({name for record in records for name in record.fields})
    present = ", ".join(names[:_MAX_FIELDS]) + (", ..." if len(names) > _MAX_FIELDS else "")
    present = present or "none"

    def message(what: str, fields: Sequence[str]) -> str:
        absent = " and no ".join(map(repr, fields))
        return f"{what}: the first {len(records)} samples have no {absent}, but {present}"

    def messages(wanted: Mapping[str, Sequence[str]]) -> list[str]:
        return [
            message(f"prepare.mapping.{what}", fields)
            for what, fields in wanted.items()
            if fields
            and all(look(record.fields, name) is None for record in records for name in fields)
        ]

    errors = messages(mapping.required())
    if image and all(record.image is None for record in records):
        errors.insert(0, message("prepare.image", [image]))
    return errors, messages({**mapping.optional(), **filters.scores(mapping)})
