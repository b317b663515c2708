"""A table beside its pictures: JSON lines, CSV, TSV or Parquet, read as a stream.

A column holds each picture's path, relative to the folder of the table, or its bytes. The other
columns are the fields, the number of the row is the sample's name. A table is cut into shards; it
is read once before, to see where each begins.
"""

import csv
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from pea_jax import storage
from pea_jax.data.origins import files, picture
from pea_jax.data.origins.record import BAD_ROW, Record, text_of

DELIMITERS = {".csv": ",", ".tsv": "\t"}
LINES = (".jsonl", ".ndjson")
PARQUET = ".parquet"
ENDINGS = (*LINES, *DELIMITERS, PARQUET)

DAMAGED = "table is damaged from here on"

_BATCH = 256

#: The fields of a row; None for one that can't be read.
_Fields = dict[str, Any] | None


@dataclass(frozen=True)
class TableShard:
    """Yields a stretch of a table's rows.

    Attributes:
      file: the table.
      image: the column of the picture.
      first: number of the first row, counted from 0 without headings and blank lines.
      count: of rows.
      offset: where the first row begins, in bytes; 0 in Parquet, which is asked by numbers.
      columns: of CSV and TSV.
    """

    file: files.File
    image: str
    first: int
    count: int
    offset: int = 0
    columns: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """What it is read from."""
        return self.file.path

    def __call__(self) -> Iterator[Record]:
        """The records, in the order of the table."""
        shard = self.file.label
        path = storage.as_path(self.file.path)
        with storage.faults(), path.open("rb") as stream:
            number = self.first
            try:
                for row in self._rows(stream):
                    name = str(number)
                    number += 1
                    if row is None:
                        yield Record(name, shard, None, {}, BAD_ROW)
                        continue
                    image, fault = picture.read(row.pop(self.image, None), [path.parent])
                    yield Record(name, shard, image, row, fault)
            except (pa.ArrowException, OSError) as error:
                # Of damaged data pyarrow says so in a plain OSError; those of disks have a number.
                if isinstance(error, OSError) and (type(error) is not OSError or error.errno):
                    raise
                yield Record(str(number), shard, None, {}, DAMAGED)

    def _rows(self, stream: io.IOBase) -> Iterator[_Fields]:
        ending = PurePosixPath(self.file.path).suffix
        if ending == PARQUET:
            return _parquet_rows(stream, self.first, self.count)
        stream.seek(self.offset)
        if ending in LINES:
            rows = (fields for _, fields in _json_rows(stream, self.offset))
        else:
            cells = _csv_rows(stream, self.offset, DELIMITERS[ending])
            rows = (_named(self.columns, row) for _, row in cells)
        return itertools.islice(rows, self.count)


def shards(where: Sequence[str], image: str, rows_per_shard: int) -> list[TableShard]:
    """The shards of tables, in the order of `files.find`.

    Args:
      where: names of tables, or of folders with tables.
      image: the column of the picture.
      rows_per_shard: at most.

    Raises:
      ValueError: a name that stands for no table, a table without such a column, or none at all.
    """
    return [
        shard for file in files.find(where, ENDINGS) for shard in _cut(file, image, rows_per_shard)
    ]


def _cut(file: files.File, image: str, size: int) -> list[TableShard]:
    ending = PurePosixPath(file.path).suffix
    columns: tuple[str, ...] = ()
    with storage.faults(), storage.as_path(file.path).open("rb") as stream:
        if ending == PARQUET:
            try:
                table = parquet.ParquetFile(stream)
            except pa.ArrowException as error:
                raise ValueError(f"{file.path}: {error}") from error
            _check_column(file, table.schema_arrow.names, image)
            total = table.metadata.num_rows
            begins = [(first, 0) for first in range(0, total, size)]
        else:
            if ending in LINES:
                offsets = (offset for offset, _ in _json_lines(stream, 0))
            else:
                rows = _csv_rows(stream, 0, DELIMITERS[ending])
                _, heading = next(rows, (0, None))
                columns = tuple(heading or ())
                _check_column(file, columns, image)
                offsets = (offset for offset, _ in rows)
            begins, total = [], 0
            for offset in offsets:
                if total % size == 0:
                    begins.append((total, offset))
                total += 1
    return [
        TableShard(file, image, first, min(size, total - first), offset, columns)
        for first, offset in begins
    ]


def _check_column(file: files.File, columns: Sequence[str], image: str) -> None:
    if image not in columns:
        raise ValueError(f"{file.path}: no column {image!r} of pictures, but {list(columns)}")
    if len(set(columns)) < len(columns):
        raise ValueError(f"{file.path}: two columns of one name in {list(columns)}")


def _json_lines(stream: io.IOBase, offset: int) -> Iterator[tuple[int, bytes]]:
    """Each line that is not blank, and where it begins."""
    for line in iter(stream.readline, b""):
        if line.strip():
            yield offset, line
        offset += len(line)


def _json_rows(stream: io.IOBase, offset: int) -> Iterator[tuple[int, _Fields]]:
    for begin, line in _json_lines(stream, offset):
        try:
            fields = json.loads(text_of(line))
        except (ValueError, RecursionError):
            fields = None
        yield begin, fields if isinstance(fields, dict) else None


def _csv_rows(
    stream: io.IOBase, offset: int, delimiter: str
) -> Iterator[tuple[int, list[str] | None]]:
    """The cells of each row that is not blank, and where it begins; None for one that is none.

    A row may have several lines, in quotes.
    """
    read = [offset]

    def lines() -> Iterator[str]:
        for line in iter(stream.readline, b""):
            read[0] += len(line)
            yield text_of(line)

    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        begin = read[0]
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error:
            cells = None
        if cells is None or cells:
            yield begin, cells


def _named(columns: Sequence[str], cells: list[str] | None) -> _Fields:
    """A row with more or fewer cells than there are columns is one that can't be read."""
    if cells is None or len(cells) != len(columns):
        return None
    return dict(zip(columns, cells, strict=True))


def _parquet_rows(stream: io.IOBase, first: int, count: int) -> Iterator[_Fields]:
    table = parquet.ParquetFile(stream)
    begin, end = first, first + count
    number = 0
    for group in range(table.num_row_groups):
        size = table.metadata.row_group(group).num_rows
        if number + size > begin and number < end:
            for batch in table.iter_batches(_BATCH, row_groups=[group]):
                for row in range(max(0, begin - number), min(batch.num_rows, end - number)):
                    yield _scalars(batch, row)
                number += batch.num_rows
        else:
            number += size


def _scalars(batch: pa.RecordBatch, row: int) -> _Fields:
    try:
        return {name: _value(batch.column(name)[row]) for name in batch.schema.names}
    except UnicodeDecodeError:  # in a list or a struct
        return None


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        if not isinstance(scalar, pa.StringScalar | pa.LargeStringScalar):
            raise
        return text_of(scalar.as_buffer().to_pybytes())
