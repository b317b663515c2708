"""Tables beside their images: JSON lines, CSV, TSV or Parquet, read as streams.

One column holds each image's bytes, or its path relative to the table's folder. The other columns
are the fields, and the row number is the sample's name. A table is split into shards. A first pass
finds the offset of each shard; Parquet stores its row counts.
"""

import collections
import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from pea_jax.data.origins import files, picture
from pea_jax.data.origins.record import BAD_ROW, MAX_TEXT, Record, json_object, text_of
from pea_jax.runtime import storage

DELIMITERS = {".csv": ",", ".tsv": "\t"}
LINES = (".jsonl", ".ndjson")
PARQUET = ".parquet"
ENDINGS = (*LINES, *DELIMITERS, PARQUET)

DAMAGED = "table is damaged from here on"
LONG_ROW = "row of the table is too long"

_BATCH = 256

#: The fields of a row, or a fault.
_Fields = dict[str, Any] | str


@dataclass(frozen=True)
class TableShard:
    """Yields a range of a table's rows.

    Attributes:
      file: the table.
      image: column of the image.
      first: number of the first row, counted from 0 without headings and blank lines.
      count: number of rows.
      offset: of the first row in bytes; 0 for Parquet, which is read by row number.
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
        """The path of the table."""
        return self.file.path

    def __call__(self) -> Iterator[Record]:
        """The records, in the order of the table."""
        shard = self.file.label
        path = storage.as_path(self.file.path)
        with storage.faults(), _opened(path) as stream:
            number = self.first
            try:
                for row in self._rows(stream):
                    name = str(number)
                    number += 1
                    if isinstance(row, str):
                        yield Record(name, shard, None, {}, row)
                        continue
                    image, fault = picture.read(row.pop(self.image, None), [path.parent])
                    yield Record(name, shard, image, row, fault)
            except (pa.ArrowException, OSError) as error:
                # pyarrow raises a plain OSError for damaged data. Errors of the disk have an errno.
                if isinstance(error, OSError) and (type(error) is not OSError or error.errno):
                    raise
                for lost in range(number, self.first + self.count):
                    yield Record(str(lost), shard, None, {}, DAMAGED)

    def _rows(self, stream: io.IOBase) -> Iterator[_Fields]:
        ending = PurePosixPath(self.file.path).suffix
        if ending == PARQUET:
            return _parquet_rows(stream, self.first, self.count)
        stream.seek(self.offset)
        if ending in LINES:
            rows = (fields for _, fields in _json_rows(stream, self.offset))
        else:
            cells = _csv_rows(stream, self.offset, DELIMITERS[ending], len(self.columns))
            rows = (
                row if isinstance(row, str) else dict(zip(self.columns, row, strict=True))
                for _, row in cells
            )
        return itertools.islice(rows, self.count)


def shards(where: Sequence[str], image: str, rows_per_shard: int) -> list[TableShard]:
    """The shards of tables, in the order of `files.find`.

    Args:
      where: tables, or folders with tables.
      image: column of the image.
      rows_per_shard: at most. A shard of Parquet has whole row groups, or a piece of a larger one.

    Raises:
      ValueError: a name matches no table, or a table has no such column.
    """
    return [
        shard for file in files.find(where, ENDINGS) for shard in _cut(file, image, rows_per_shard)
    ]


def _cut(file: files.File, image: str, size: int) -> list[TableShard]:
    ending = PurePosixPath(file.path).suffix
    columns: tuple[str, ...] = ()
    with storage.faults(), _opened(storage.as_path(file.path)) as stream:
        if ending == PARQUET:
            try:
                table = parquet.ParquetFile(stream)
            except pa.ArrowException as error:
                raise ValueError(f"{file.path}: {error}") from error
            _check_column(file, table.schema_arrow.names, image)
            return [
                TableShard(file, image, *rows)
                for rows in _parquet_ranges(_group_sizes(table), size)
            ]
        if ending in LINES:
            offsets = (offset for offset, _ in _json_lines(stream, 0))
        else:
            rows = _csv_rows(stream, 0, DELIMITERS[ending])
            _, heading = next(rows, (0, BAD_ROW))
            columns = () if isinstance(heading, str) else tuple(heading)
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


def _opened(path: storage.AnyPath) -> io.BufferedReader:
    """An open file that can limit the length of a line, which files in buckets cannot."""
    return io.BufferedReader(path.open("rb"))


def _check_column(file: files.File, columns: Sequence[str], image: str) -> None:
    if image not in columns:
        raise ValueError(f"{file.path}: no column {image!r} of pictures, but {list(columns)}")
    if len(set(columns)) < len(columns):
        raise ValueError(f"{file.path}: two columns of one name in {list(columns)}")


def _lines(stream: io.IOBase, offset: int) -> Iterator[tuple[int, bytes | None]]:
    """Offset and content of each line; None for a line longer than `MAX_TEXT`."""
    while line := stream.readline(MAX_TEXT + 1):
        begin, offset = offset, offset + len(line)
        rest, long = line, len(line) > MAX_TEXT
        while long and rest and not rest.endswith(b"\n"):
            rest = stream.readline(MAX_TEXT)
            offset += len(rest)
        yield begin, None if long else line


def _json_lines(stream: io.IOBase, offset: int) -> Iterator[tuple[int, bytes | None]]:
    """`_lines` without blank lines."""
    return (each for each in _lines(stream, offset) if each[1] is None or each[1].strip())


def _json_rows(stream: io.IOBase, offset: int) -> Iterator[tuple[int, _Fields]]:
    for begin, line in _json_lines(stream, offset):
        fields = LONG_ROW if line is None else json_object(line)
        yield begin, BAD_ROW if fields is None else fields


def _csv_rows(
    stream: io.IOBase, offset: int, delimiter: str, columns: int = 0
) -> Iterator[tuple[int, list[str] | str]]:
    """Offset and cells, or the fault, of each row that is not blank.

    A row may have several lines in quotes. A row with a fault is only its first line, and the next
    line starts a new row, so that an unclosed quote affects no other row.

    Args:
      stream: positioned at `offset`.
      offset: of a row.
      delimiter: of cells.
      columns: cells per row; 0 for the number of cells in the first row.
    """
    lines, unread = _lines(stream, offset), collections.deque()
    while True:
        taken: list[tuple[int, bytes | None]] = []

        def texts(taken: list = taken) -> Iterator[str]:
            size = 0
            while size <= MAX_TEXT and (line := unread.popleft() if unread else next(lines, None)):
                taken.append(line)
                if line[1] is None:
                    return
                size += len(line[1])
                yield text_of(line[1])

        try:
            cells = next(csv.reader(texts(), delimiter=delimiter, strict=True), None)
        except csv.Error:
            cells = BAD_ROW
        if not taken:
            return
        begin, line = taken[0]
        if cells == []:
            continue
        columns = columns or len(cells or ())
        if cells is None or len(cells) != columns:
            cells = LONG_ROW if line is None else BAD_ROW
        if isinstance(cells, str):
            unread.extendleft(reversed(taken[1:]))
        yield begin, cells


def _group_sizes(table: parquet.ParquetFile) -> list[int]:
    """Number of rows in each row group."""
    return [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]


def _parquet_ranges(groups: Sequence[int], size: int) -> Iterator[tuple[int, int]]:
    """First row and count of each shard: row groups of at most `size` rows together, or a piece of
    a larger group. Groups are split rarely, because each piece decodes its group from the start.
    """
    first = count = 0
    for rows in groups:
        if count and count + rows > size:
            yield first, count
            first, count = first + count, 0
        count += rows
        while count > size:
            yield first, size
            first, count = first + size, count - size
    if count:
        yield first, count


def _parquet_rows(stream: io.IOBase, first: int, count: int) -> Iterator[_Fields]:
    table = parquet.ParquetFile(stream)
    begins = [0, *itertools.accumulate(_group_sizes(table))]
    groups = [
        group
        for group, (begin, end) in enumerate(itertools.pairwise(begins))
        if begin < first + count and end > first
    ]
    number = begins[groups[0]]
    for batch in table.iter_batches(_BATCH, row_groups=groups):
        for row in range(max(0, first - number), min(batch.num_rows, first + count - number)):
            yield _scalars(batch, row)
        number += batch.num_rows
        if number >= first + count:
            return


def _scalars(batch: pa.RecordBatch, row: int) -> _Fields:
    try:
        return {name: _value(batch.column(name)[row]) for name in batch.schema.names}
    except UnicodeDecodeError:  # in a list or a struct
        return BAD_ROW


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        if not isinstance(scalar, pa.StringScalar | pa.LargeStringScalar):
            raise
        return text_of(scalar.as_buffer().to_pybytes())
