import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from pea_jax.data import paths
from pea_jax.data.read.source import DatasetError, Source, locate
from pea_jax.data.write import builder
from pea_jax.runtime import storage
from tests.data import sets


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return sets.source(tmp_path_factory.mktemp("data"))


def test_rows_are_chosen_by_kind_and_language(source):
    assert source.languages == ("ja", "zh")
    for native in (False, True):
        for language in ("zh", "ja"):
            chosen = source.select(native=native, languages=[language])
            assert chosen.tolist() == sets.numbers(language, native)
        both = sorted(sets.numbers("zh", native) + sets.numbers("ja", native))
        assert source.select(native=native, languages=["ja", "zh"]).tolist() == both
        assert source.select(native=native).tolist() == both


def test_a_native_row_with_an_english_caption_is_native_only(tmp_path):
    made = [sets.row(0), sets.row(1, native=True, caption_en="by a machine")]
    source = Source(builder.build(tmp_path, "small", {"train": [lambda: made]}), "train")
    assert source.select(native=True).tolist() == [1]
    assert source.select(native=False).tolist() == [0]


def test_an_unknown_language_or_split_is_named(source):
    with pytest.raises(DatasetError, match=r"\['ko'\] are none of \['ja', 'zh'\]"):
        source.select(native=True, languages=["zh", "ko"])
    with pytest.raises(DatasetError, match=r"\['train'\], not 'validation'"):
        Source(source.folder, "validation")


def test_a_pickled_source_reads_the_same_and_is_small(source):
    source[0]
    pickled = pickle.dumps(source)
    assert len(pickled) < 1000
    assert pickle.loads(pickled)[5] == source[5]
    assert pickle.loads(pickled).languages == source.languages


def test_a_copy_in_a_worker_opens_records_alone(tmp_path):
    """Otherwise each worker would read the index and check every file."""
    source = sets.source(tmp_path)
    expected = [source[number] for number in range(len(source))]
    pickled = pickle.dumps(source)
    paths.index_file(source.folder, "train").unlink()
    paths.report_file(source.folder).unlink()
    copy = pickle.loads(pickled)
    assert [copy[number] for number in range(len(expected))] == expected
    assert "index" not in vars(copy)


def test_files_are_checked_by_one_listing(tmp_path, monkeypatch):
    folder = sets.source(tmp_path).folder
    listed, sizes = [], storage.sizes
    monkeypatch.setattr(storage, "sizes", lambda place: listed.append(place) or sizes(place))
    monkeypatch.setattr(storage, "size", None)
    Source(folder, "train")
    assert listed == [folder]


def test_only_whole_sets_are_found(tmp_path):
    rows = {"train": [lambda: [sets.row(1)]]}
    folder = builder.build(tmp_path, "small", rows)
    (tmp_path / "small" / "incomplete.ABC_2.0.0").mkdir()
    (tmp_path / "small" / "incomplete.ABC_2.0.0" / "dataset_info.json").touch()
    (tmp_path / "small" / "9.0.0").mkdir()
    assert locate(tmp_path, "small") == folder == locate(tmp_path, f"small/{paths.VERSION}")
    with pytest.raises(DatasetError, match="no data set 'large'"):
        locate(tmp_path, "large")


def test_the_latest_version_is_taken(tmp_path):
    for version in ("9.0.0", "10.0.0", "2.0.0"):
        (tmp_path / "small" / version).mkdir(parents=True)
        (tmp_path / "small" / version / "dataset_info.json").touch()
    assert locate(tmp_path, "small").name == "10.0.0"


def test_a_damaged_set_is_refused_before_it_is_read(tmp_path):
    folder = sets.source(tmp_path).folder
    index = paths.index_file(folder, "train")
    whole = np.load(index)
    first, second = sorted(folder.glob("*.array_record-*"))
    cases = [
        (lambda: np.save(index, whole[:-1]), "47 rows, but the split has 48"),
        (lambda: np.save(index, whole["height"]), "another version"),
        (lambda: second.write_bytes(second.read_bytes()[:-1]), f"{second.name} has .* bytes of"),
        (first.unlink, f"{first.name} is missing; {second.name} has"),
        (paths.report_file(folder).unlink, "no report.json"),
        ((folder / "dataset_info.json").unlink, "no dataset_info.json"),
    ]
    for damage, message in cases:
        damage()
        with pytest.raises(DatasetError, match=message):
            Source(folder, "train")


def test_a_damaged_record_is_named(tmp_path):
    source = sets.source(tmp_path)
    file = min(source.folder.glob("*.array_record-*"))
    data = bytearray(file.read_bytes())
    data[200:300] = bytes(100)
    file.write_bytes(data)
    with pytest.raises(DatasetError, match=r"row 0 of split train .* can't be read"):
        Source(source.folder, "train")[0]


def test_a_set_of_more_files_than_a_process_may_open_is_read_or_refused(tmp_path):
    """Files stay open after a row was read: a run would end after too many of them.

    Here are 48 files and a soft limit of 40: first with room up to the hard limit, then with none.
    """
    one_each = [lambda made=made: [made] for made in sets.rows()]
    folder = builder.build(tmp_path, "small", {"train": one_each})
    program = """
        import pickle, resource, sys
        from pea_jax.data.read.source import DatasetError, Source

        def limit(soft, hard):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

        limit(40, 400)
        source = Source(sys.argv[1], "train")
        print([source[number].key for number in range(48)][-1])
        pickled = pickle.dumps(source)
        del source
        limit(40, 400)
        copy = pickle.loads(pickled)  # as a worker does
        print([copy[number].key for number in range(48)][-1])
        del copy
        limit(40, 303)
        try:
            Source(sys.argv[1], "train")
        except DatasetError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert done.returncode == 0, done.stderr
    first, second, refused = done.stdout.splitlines()
    assert first == second == "row47"
    assert "split train has 48 files, which are open while it is read, and this proce" in refused
    assert "may open 303: allow 304 (ulimit -n 304, " in refused
