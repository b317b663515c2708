"""Origins of rows, by the name in `prepare.origin`.

An origin lists the shards of its data. A shard (`record.RecordShard`) is a frozen, picklable
dataclass that yields the records of one file, or of a range of its rows, always in the same order.
A new origin is one module with a function `shards`, and one row of `ORIGINS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pea_jax.data.origins import hugging_face, tables, tars, tfds_sets
from pea_jax.data.origins.record import RecordShard


@dataclass(frozen=True)
class Origin:
    """A kind of data that rows are made from.

    Attributes:
      list_shards: takes the names of `prepare.where` and the `settings`.
      settings: what else the origin needs: "split", "data_dir", or fields of `prepare`: "image",
        "rows_per_shard".
    """

    list_shards: Callable[..., Sequence[RecordShard]]
    settings: tuple[str, ...] = ()

    def shards(self, where: Sequence[str], **settings: Any) -> Sequence[RecordShard]:
        """The shards of one split, from all possible settings.

        Raises:
          ValueError: names, columns or packages are missing.
        """
        return self.list_shards(where, **{name: settings[name] for name in self.settings})


_COLUMNS = ("image", "rows_per_shard")

ORIGINS = {
    # Webdataset tars, as img2dataset writes them.
    "tars": Origin(tars.shards),
    # JSON lines, CSV or Parquet beside its images.
    "table": Origin(tables.shards, _COLUMNS),
    # Data sets of the package `datasets`.
    "hugging_face": Origin(hugging_face.shards, ("split", *_COLUMNS)),
    # TFDS data sets in ArrayRecord, including prepared ones.
    "tfds": Origin(tfds_sets.shards, ("split", *_COLUMNS, "data_dir")),
}
