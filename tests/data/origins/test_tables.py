import itertools
import json
import pickle

import pyarrow as pa
import pytest
from pyarrow import parquet

from pea_jax.data.origins import tables
from pea_jax.data.origins.record import BAD_ROW, MAX_TEXT, NO_FILE, NO_PATH

ROWS = [
    {"file": "images/0.jpg", "caption": "一,\n二", "n": 1},
    {"file": "images/1.jpg", "caption": '"三"', "n": 2},
    {"file": "images/2.jpg", "caption": "四", "n": 3},
    {"file": "images/none.jpg", "caption": "五", "n": 4},
    {"file": "images/0.jpg", "caption": "六", "n": 5},
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(b"picture %d" % number)
    return tmp_path


def write(folder, ending):
    """ROWS as a table, with every valid oddity of its format."""
    path = folder / f"table{ending}"
    if ending == ".parquet":
        parquet.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2)
        return path
    if ending == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
        path.write_text("\ufeff" + "\n\n".join(lines), "utf-8")
        return path
    quoted = [
        [f'"{str(value).replace(chr(34), 2 * chr(34))}"' for value in row.values()] for row in ROWS
    ]
    delimiter = tables.DELIMITERS[ending]
    lines = [delimiter.join(cells) for cells in [list(ROWS[0]), *quoted]]
    path.write_bytes(("\ufeff" + "\r\n\r\n".join(lines)).encode())
    return path


def records(*where, size=100, image="file"):
    shards = tables.shards([str(path) for path in where], image, size)
    return [list(pickle.loads(pickle.dumps(shard))()) for shard in shards]


@pytest.mark.parametrize("ending", tables.ENDINGS)
def test_a_table_is_read_the_same_however_it_is_cut(folder, ending):
    if ending == ".ndjson":
        path = write(folder, ".jsonl").rename(folder / "table.ndjson")
    else:
        path = write(folder, ending)
    (whole,) = records(path)
    assert [record.name for record in whole] == ["0", "1", "2", "3", "4"]
    assert [record.fields["caption"] for record in whole] == [row["caption"] for row in ROWS]
    assert [int(record.fields["n"]) for record in whole] == [1, 2, 3, 4, 5]
    assert [record.image for record in whole] == [
        b"picture 0",
        b"picture 1",
        b"picture 2",
        None,
        b"picture 0",
    ]
    assert [record.fault for record in whole] == [None, None, None, NO_FILE, None]
    assert {record.shard for record in whole} == {"table"}
    for size in (1, 2, 3, 4):
        cut = records(path, size=size)
        lengths = [min(size, 5 - n) for n in range(0, 5, size)]
        if (ending, size) == (".parquet", 3):
            lengths = [2, 3]  # groups of 2, 2 and 1
        assert [len(some) for some in cut] == lengths
        assert [record for some in cut for record in some] == whole


def test_a_folder_stands_for_its_tables(folder):
    write(folder, ".csv")
    write(folder, ".jsonl").rename(folder / "another.jsonl")
    made = records(folder)
    assert [some[0].shard for some in made] == ["another", "table"]


def test_rows_that_cannot_be_read_are_reported_and_end_nothing(folder):
    good = '{"file": "images/0.jpg"}'
    lines = [good, '{"file": "images/0', "[]", good, '{"file": 5}', '{"file": "a\\u0000b"}']
    lines += ['{"file": "http://where/0.jpg"}', "{}", '{"file": ""}', '{"file": "images"}', good]
    path = folder / "t.jsonl"
    path.write_text("\n".join(lines))
    found = [(record.fault, record.image) for record in records(path)[0]]
    assert found == [
        (None, b"picture 0"),
        (BAD_ROW, None),
        (BAD_ROW, None),
        (None, b"picture 0"),
        (NO_PATH, None),
        (NO_FILE, None),
        (NO_PATH, None),
        (None, None),
        (None, None),
        (NO_FILE, None),
        (None, b"picture 0"),
    ]


def test_torn_rows_of_csv_are_reported_and_end_nothing(folder):
    path = folder / "t.csv"
    good = b"images/0.jpg,good\n"
    rows = [
        good,
        b"images/1.jpg\n",
        b"a,b,c\n",
        b'images/1.jpg,"a"b\n',
        good,
        b"images/0.jpg,\xff\n",
        good,
    ]
    path.write_bytes(b"file,caption\n" + b"".join(rows))
    for size in (100, 1, 2):
        found = [record for some in records(path, size=size) for record in some]
        assert [record.fault for record in found] == [None, *[BAD_ROW] * 3, None, None, None]
    with pytest.raises(UnicodeEncodeError):
        found[5].fields["caption"].encode()


@pytest.mark.parametrize("size", [100, 1, 2])
def test_a_quote_that_nothing_closes_takes_no_other_row_with_it(folder, size):
    lines = [
        "images/0.jpg,0",
        'images/0.jpg,"1',  # runs into the quote of 3, which no delimiter follows
        "images/0.jpg,2",
        'images/0.jpg,"3"',
        "images/0.jpg,4",
        'images/0.jpg,"5',  # closed by the quote of 6, but then the row has three cells
        'images/0.jpg,",6',
        'images/0.jpg,"7\n7"',
        'images/0.jpg,"8',  # runs to the end
        *(f"images/0.jpg,{n}" for n in range(9, 20)),
    ]
    path = folder / "t.csv"
    path.write_text("file,caption\n" + "\n".join(lines))
    found = [record for some in records(path, size=size) for record in some]
    expected = [str(n) if n != 7 else "7\n7" for n in range(20)]
    bad = [1, 5, 6, 8]
    assert [record.fields.get("caption") for record in found] == [
        None if n in bad else text for n, text in enumerate(expected)
    ]
    assert [n for n, record in enumerate(found) if record.fault == BAD_ROW] == bad
    assert [record.name for record in found] == [str(n) for n in range(20)]


@pytest.mark.parametrize(("ending", "size"), [(".csv", 100), (".csv", 1), (".jsonl", 1)])
def test_a_row_that_is_too_long_is_reported_and_not_read(folder, ending, size):
    good = {".csv": "images/0.jpg,x", ".jsonl": '{"file": "images/0.jpg"}'}[ending]
    heading = {".csv": ["file,caption"], ".jsonl": []}[ending]
    edge = good + " " * (MAX_TEXT - len(good) - 1)
    lines = [*heading, good, "x" * (2 * MAX_TEXT + 5), good, edge, edge + " ", good, "x" * MAX_TEXT]
    path = folder / f"t{ending}"
    path.write_text("\n".join(lines) + "x")
    found = [record.fault for some in records(path, size=size) for record in some]
    long = tables.LONG_ROW
    # A cell of csv is shorter than a row may be.
    at_edge = BAD_ROW if ending == ".csv" else None
    assert found == [None, long, None, at_edge, long, None, long]


def test_a_shard_of_parquet_decodes_no_other_group_and_not_beyond_its_end(folder, monkeypatch):
    path = folder / "t.parquet"
    groups = [1000, 1000, 2600, 1000, 300, 300]
    table = pa.table({"image": [b"x"] * sum(groups), "n": range(sum(groups))})
    with parquet.ParquetWriter(path, table.schema) as writer:
        for group, end in zip(groups, itertools.accumulate(groups), strict=True):
            writer.write_table(table.slice(end - group, group))
    decoded, real = [], parquet.ParquetFile.iter_batches

    def counting(*args, **keywords):
        for batch in real(*args, **keywords):
            decoded[-1] += batch.num_rows
            yield batch

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", counting)
    found, counts = [], []
    for shard in tables.shards([str(path)], "image", 1000):
        decoded.append(0)
        rows = [record.fields["n"] for record in shard()]
        counts.append(len(rows))
        found += rows
    assert found == list(range(sum(groups)))
    assert counts == [1000, 1000, 1000, 1000, 600, 1000, 600]
    # Reading a piece of a large group also decodes the rows before it.
    needed = [1000, 1000, 1000, 2000, 2600, 1000, 600]
    for got, least in zip(decoded, needed, strict=True):
        assert least <= got < least + tables._BATCH


def test_parquet_may_hold_the_pictures_and_text_that_is_none(folder):
    buffers = pa.array([b"good", b"\xff", b"good"]).buffers()
    texts = pa.StringArray.from_buffers(3, buffers[1], buffers[2])
    table = pa.table(
        {
            "image": [
                {"bytes": b"one", "path": "x"},
                {"bytes": None, "path": "images/1.jpg"},
                None,
            ],
            "raw": [b"two", b"", None],
            "caption": texts,
        }
    )
    path = folder / "t.parquet"
    parquet.write_table(table, path)
    (made,) = records(path, image="image")
    assert [record.image for record in made] == [b"one", b"picture 1", None]
    with pytest.raises(UnicodeEncodeError):
        made[1].fields["caption"].encode()
    (made,) = records(path, image="raw")
    assert [record.image for record in made] == [b"two", b"", None]


def test_a_damaged_page_of_parquet_is_reported(folder):
    path = folder / "t.parquet"
    rows = {"image": [b"%05d" % n * 100 for n in range(4000)], "n": range(4000)}
    parquet.write_table(pa.table(rows), path, row_group_size=1000, use_dictionary=False)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = b"\xff" * 2000
    path.write_bytes(data)
    (made,) = records(path, size=10_000, image="image")
    faults = [record.fault for record in made]
    good = faults.index(tables.DAMAGED)
    assert good >= 1000
    assert faults == [None] * good + [tables.DAMAGED] * (4000 - good)
    # Shards of other groups are in order.
    cut = [{record.fault for record in some} for some in records(path, size=1000, image="image")]
    assert len(cut) == 4
    assert cut.count({None}) in (2, 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"path,caption\n1,2\n", r"t.csv: no column 'file' of pictures, but \['path'"),
        ("t.csv", b"", r"t.csv: no column 'file'"),
        ("t.csv", b"file,n,n\n1,2,3\n", "two columns of one name"),
        ("t.parquet", b"PAR1 and no more", "t.parquet: "),
        ("t.xlsx", b"", r"no file \(\*.jsonl.*t.xlsx"),
    ],
)
def test_what_is_no_table_of_pictures_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        records(tmp_path / name)
