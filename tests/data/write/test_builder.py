import json
import os
import shutil
import subprocess
import sys
import textwrap
import time

import pytest

from pea_jax.data import paths
from pea_jax.data.read.source import Source, locate
from pea_jax.data.write import builder
from pea_jax.data.write.parts import ShardPart
from tests.data import sets, shards


def files_of(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def begun(data_dir):
    """The folder of the parts of "small"."""
    (top,) = paths.unfinished(paths.folder_of(data_dir, "small"))
    return top


def test_rows_come_back_as_they_went_in_and_in_order(tmp_path):
    made = sets.rows()
    made[3] = sets.row(
        3, caption="红烧狮子头", caption_en="« tête »", key="路/3", height=480, width=9
    )
    parts = [lambda: iter(made[:5]), lambda: made[5:6], lambda: [], lambda: made[6:]]
    source = Source(builder.build(tmp_path, "small", {"train": parts}), "train")
    assert len(source) == len(made)
    assert [source[number] for number in range(len(source))] == made


def test_splits_are_apart(tmp_path):
    one, two = [sets.row(1)], [sets.row(2), sets.row(3)]
    folder = builder.build(tmp_path, "small", {"train": [lambda: one], "test": [lambda: two]})
    assert [Source(folder, split)[0].key for split in ("train", "test")] == ["row1", "row2"]
    assert len(Source(folder, "test")) == 2


def test_rows_that_say_nothing_are_rejected_and_counted(tmp_path):
    made = [
        sets.row(0),
        sets.row(1, caption=""),
        sets.row(2, caption=" \n"),
        sets.row(3, caption_en=""),
        sets.row(4, native=True),
        sets.row(5, language=""),
        sets.row(6, image=b""),
        *(sets.row(number, caption="") for number in range(7, 14)),
    ]
    splits = {"train": [lambda: made[:3], lambda: made[3:]]}
    folder = builder.build(tmp_path, "small", splits)
    source = Source(folder, "train")
    assert [source[number].key for number in range(len(source))] == ["row0", "row4"]
    report = json.loads(paths.report_file(folder).read_text())["train"]
    assert report["kept"] == 2
    assert report["rejected"] == {
        "caption is missing": 9,
        "caption_en is missing": 1,
        "image is missing": 1,
        "language is missing": 1,
    }
    assert report["examples"]["caption is missing"] == ["row1", "row2", "row7", "row8", "row9"]


def test_a_set_is_built_once(tmp_path):
    folder = builder.build(tmp_path, "small", {"train": [lambda: [sets.row(1)]]})
    before = files_of(tmp_path)

    def never():
        raise AssertionError("the set is there already")
        yield

    assert builder.build(tmp_path, "small", {"train": [never]}) == folder
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_build_leaves_no_set_and_goes_on_with_what_is_done(tmp_path, error):
    def failing():
        yield sets.row(1)
        raise error("here")

    def never():
        raise AssertionError("this part is there already")
        yield

    with pytest.raises(error, match="here"):
        builder.build(tmp_path, "small", {"train": [lambda: [sets.row(0)], failing]})
    assert os.listdir(tmp_path / "small") == [begun(tmp_path).name]
    with pytest.raises(ValueError, match="no data set"):
        locate(tmp_path, "small")
    left = {file.split("/")[2] for file in files_of(tmp_path)}
    assert left == {"plan.json", "train-00000"}
    splits = {"train": [never, lambda: [sets.row(1)]]}
    source = Source(builder.build(tmp_path, "small", splits), "train")
    assert [source[number].key for number in range(len(source))] == ["row0", "row1"]
    assert os.listdir(tmp_path / "small") == ["1.0.0"]


def test_a_build_killed_at_any_step_goes_on_to_the_same_set(tmp_path):
    command = [sys.executable, "-m", "tests.data.write.kill_points", str(tmp_path), "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 of " in done.stdout
    assert "[0, 1, 2, 3, 4, 5, 6] parts done" in done.stdout, "kills were during every part"


@pytest.mark.slow
def test_a_build_killed_at_every_step_goes_on_to_the_same_set(tmp_path):
    command = [sys.executable, "-m", "tests.data.write.kill_points", str(tmp_path), "1000"]
    subprocess.run(command, check=True)


def test_two_processes_that_build_the_same_set_at_once_make_one(tmp_path):
    program = """
        import sys, time
        from pathlib import Path
        from pea_jax.data import paths
        from pea_jax.data.write import builder
        from tests.data import shards

        while time.time() < float(sys.argv[2]):
            pass
        folder = builder.build(sys.argv[1], "small", shards.splits())
        assert paths.is_built(folder)
    """
    expected = shards.contents(builder.build(tmp_path / "one", "small", shards.splits()))
    for turn in range(3):
        place = tmp_path / str(turn)
        when = time.time() + 8
        command = [sys.executable, "-c", textwrap.dedent(program), str(place), str(when)]
        both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
        errors = [each.communicate()[1] for each in both]
        assert [each.returncode for each in both] == [0, 0, 0], errors
        assert os.listdir(place / "small") == ["1.0.0"]
        assert shards.contents(place / "small" / "1.0.0") == expected


def test_of_two_builds_at_once_the_first_counts(tmp_path):
    def overtaken():
        yield sets.row(1)
        builder.build(tmp_path, "small", {"train": [lambda: [sets.row(2)]]})

    folder = builder.build(tmp_path, "small", {"train": [overtaken]})
    assert Source(folder, "train")[0].key == "row2"
    assert os.listdir(tmp_path / "small") == [folder.name]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([[sets.row(1, language="chinese-simplified")]], "row1.*chinese-simplified"),
        ([[sets.row(1, key="")]], "needs a key"),
    ],
)
def test_what_makes_no_set_raises(tmp_path, made, message):
    splits = {"train": [lambda rows=rows: rows for rows in made]}
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            builder.build(tmp_path, "small", splits)
    assert os.listdir(tmp_path / "small") == [begun(tmp_path).name]


def test_where_no_row_is_kept_the_reasons_are_reported_and_nothing_is_in_the_way(tmp_path):
    blank = [sets.row(number, caption="") for number in range(3)]
    with pytest.raises(ValueError, match=r"no row to keep; rejected: caption .* 3 .* row0\)$"):
        builder.build(tmp_path, "small", {"train": [lambda: blank]}, recipe={"of": "blanks"})
    with pytest.raises(ValueError, match="no row to keep; rejected: none"):
        builder.build(tmp_path, "small", {"train": []}, recipe={"of": "nothing"})
    assert os.listdir(tmp_path / "small") == []
    builder.build(tmp_path, "small", {"train": [lambda: [sets.row(1)]]}, recipe={"of": "rows"})


def test_names_that_tfds_could_not_read_are_refused_at_once(tmp_path):
    rows = [lambda: [sets.row(1)]]
    for name, splits, message in [
        ("Small-2", {"train": rows, "a/b": rows}, "'Small-2', split 'a/b'"),
        ("small", {}, "no split"),
    ]:
        with pytest.raises(ValueError, match=f"expected names of lower case .*{message}"):
            builder.build(tmp_path, name, splits)
    assert files_of(tmp_path) == []


def test_of_rows_with_one_key_the_first_is_kept(tmp_path):
    folder = builder.build(tmp_path, "small", shards.splits())
    source = Source(folder, "train")
    assert [source[number].key for number in range(len(source))] == list(shards.KEPT)
    # The pictures are those of the first rows: 10 * shard + place.
    numbers = [0, 1, 3, 10, 12, 20, 21, 22, 50, 52]
    assert [source[number].image for number in range(10)] == [sets.png(n) for n in numbers]
    report = json.loads(paths.report_file(folder).read_text())["train"]
    assert report["kept"] == 10
    assert report["rejected"] == {"is no image": 6, "key occurs more than once": 6}
    assert report["examples"]["key occurs more than once"] == ["a", "b", "g", "f", "a"]
    assert len(report["files"]) == shards.FILES
    # Splits are apart: the same keys are in both.
    assert len(Source(folder, "test")) == 3


def test_of_rows_with_one_key_the_first_good_one_is_kept(tmp_path):
    made = [[sets.row(1, caption="")], [sets.row(2, key="row1")], [sets.row(3, key="row1")]]
    splits = {"train": [lambda rows=rows: rows for rows in made]}
    folder = builder.build(tmp_path, "small", splits)
    assert [Source(folder, "train")[0].caption] == ["c2"]
    assert paths.report_file(folder).read_text().count("row1") == 2


def test_progress_begins_with_what_is_done(tmp_path):
    calls = []

    def build(**wrong):
        calls.clear()
        splits = {"train": shards.splits(**wrong)["train"]}
        builder.build(tmp_path, "small", splits, progress=lambda *each: calls.append(each))

    with pytest.raises(ValueError, match="shard 2 is broken"):
        build(fail=1)
    # Parts done, parts, rows kept, rows rejected.
    assert calls == [(0, 6, 0, 0), (1, 6, 3, 2), (2, 6, 6, 3)]
    build()
    assert calls[0] == (2, 6, 6, 3)
    assert [done for done, *_ in calls] == [2, 3, 4, 5, 6]
    assert calls[-1][2] == 15
    build()
    assert calls == [], "the set exists"


def test_another_recipe_is_refused_and_nothing_changed(tmp_path):
    recipe = {"inputs": ["a.tar", "b.tar"], "mapping": {"caption": "txt"}, "area": 1}
    other = {"inputs": ["a.tar"], "mapping": {"caption": "json"}, "area": 1}
    message = (
        r'was made from something else: (recipe\.)?inputs\.1: "b.tar" there, nothing now; '
        r'(recipe\.)?mapping.caption: "txt" there, "json" now. Remove it, or give the new data '
        "set another name"
    )

    def build(recipe, **wrong):
        return builder.build(tmp_path, "small", shards.splits(**wrong), recipe=recipe)

    with pytest.raises(ValueError, match="is broken"):
        build(recipe, fail=1)
    before = shards.contents(tmp_path)
    with pytest.raises(ValueError, match=rf"unfinished\.1\.0\.0\.\w{{10}} {message}"):
        build(other)
    assert shards.contents(tmp_path) == before
    folder = build(recipe)
    assert json.loads(paths.recipe_file(folder).read_text()) == recipe
    before = shards.contents(tmp_path)
    assert build(recipe) == build(None) == folder
    with pytest.raises(ValueError, match=rf"small/1\.0\.0 {message}"):
        build(other)
    assert shards.contents(tmp_path) == before
    with pytest.raises(ValueError, match="what JSON can hold"):
        build({"filter": max})


def test_other_shards_or_another_release_do_not_go_on_with_the_parts(tmp_path, monkeypatch):
    splits = {"train": [lambda: [sets.row(1)], lambda: 1 / 0]}
    with pytest.raises(ZeroDivisionError):
        builder.build(tmp_path, "small", splits)
    with pytest.raises(ValueError, match=r"shards\.train: 2 there, 1 now"):
        builder.build(tmp_path, "small", {"train": splits["train"][:1]})
    monkeypatch.setattr("pea_jax.__version__", "0.0.0")
    with pytest.raises(ValueError, match=r'pea_jax: "[0-9.]+" there, "0.0.0" now'):
        builder.build(tmp_path, "small", splits)


def test_unfinished_sets_of_earlier_versions_are_found(tmp_path, monkeypatch):
    """With another digest, a restarted build would not find its parts."""
    monkeypatch.setattr("pea_jax.__version__", "0.0.0")
    splits = {"train": [lambda: [sets.row(1)], lambda: 1 / 0]}
    with pytest.raises(ZeroDivisionError):
        builder.build(tmp_path, "small", splits, recipe={"of": "ink"})
    assert begun(tmp_path).name == "unfinished.1.0.0.147023bf0f"
    assert {"plan.json", "train-00000"} == set(os.listdir(begun(tmp_path)))


def test_what_nothing_came_of_does_not_stand_in_the_way_of_another_recipe(tmp_path):
    broken = {"train": shards.splits(fail=0)["train"][2:]}
    with pytest.raises(ValueError, match="shard 2 is broken"):
        builder.build(tmp_path, "small", broken, recipe={"a": 1})
    builder.build(tmp_path, "small", shards.splits(), recipe={"b": 1})
    assert os.listdir(tmp_path / "small") == ["1.0.0"]


def test_what_another_build_has_just_begun_is_not_removed(tmp_path):
    """The parts of another recipe stay until a set exists, which then refuses the recipe."""
    splits, seen = {"train": [lambda: [sets.row(1)]]}, []

    def overtaken(*_):
        if not seen:
            seen.append(begun(tmp_path))
            builder.build(tmp_path, "small", splits, recipe={"b": 1}, progress=look)

    def look(*_):
        seen.append(seen[0].is_dir())

    with pytest.raises(ValueError, match=r"1\.0\.0 was made from something else: a: nothing there"):
        builder.build(tmp_path, "small", splits, recipe={"a": 1}, progress=overtaken)
    assert seen[1:] == [True, True]
    assert os.listdir(tmp_path / "small") == ["1.0.0"]


def test_an_error_of_the_rows_is_reported_though_another_has_built_the_set(tmp_path):
    def broken():
        builder.build(tmp_path, "small", {"train": [lambda: [sets.row(1)]]})
        yield 1 / 0

    with pytest.raises(ZeroDivisionError):
        builder.build(tmp_path, "small", {"train": [broken]})


def test_disks_without_hard_links_take_copies(tmp_path, monkeypatch):
    def link(source, target):
        raise PermissionError(1, "Operation not permitted", source)

    expected = shards.contents(builder.build(tmp_path / "a", "small", shards.splits()))
    monkeypatch.setattr(os, "link", link)
    assert shards.contents(builder.build(tmp_path / "b", "small", shards.splits())) == expected


def test_a_part_that_was_damaged_is_named(tmp_path):
    with pytest.raises(ValueError, match="is broken"):
        builder.build(tmp_path, "small", shards.splits(fail=1))
    records = begun(tmp_path) / "train-00000" / "records.array_record"
    records.write_bytes(b"")
    with pytest.raises(ValueError, match=r"train-00000.* has 0 bytes of .*remove .*train-00000,"):
        builder.build(tmp_path, "small", shards.splits())
    shutil.rmtree(records.parent)
    builder.build(tmp_path, "small", shards.splits())


def test_a_process_that_is_reported_to_end_removes_its_own_drafts_alone(tmp_path):
    host = os.uname().nodename
    mine, other = (f".pea_jax-train-00000.{host}.{pid}.abc" for pid in (os.getpid(), 1))
    for name in (mine, other):
        (tmp_path / name / "folder").mkdir(parents=True)
    ShardPart(str(tmp_path), "train-00000").remove_drafts()
    assert os.listdir(tmp_path) == [other]


def test_drafts_of_processes_that_are_gone_are_removed(tmp_path):
    with pytest.raises(ValueError, match="is broken"):
        builder.build(tmp_path, "small", shards.splits(fail=1))
    top = begun(tmp_path)
    host = os.uname().nodename
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = [
        (f".pea_jax-train-00002.{host}.{gone.pid}.a_b1", False),
        (f".pea_jax-train-00002.{host}.{os.getpid()}.a_b2", True),
        (f".pea_jax-train-00002.{host}.elsewhere.{gone.pid}.a_b3", True),
        (".nfs0001", True),
    ]
    for name, _ in names:
        (top / name).mkdir()
    (top.parent / f".pea_jax-unfinished.{host}.{gone.pid}.a_b4").mkdir()
    with pytest.raises(ValueError, match="is broken"):
        builder.build(tmp_path, "small", shards.splits(fail=1))
    assert [(name, (top / name).exists()) for name, _ in names] == names
    assert os.listdir(top.parent) == [top.name]


def test_a_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "small" / paths.VERSION).mkdir(parents=True)
    with pytest.raises(ValueError, match="in the way"):
        builder.build(tmp_path, "small", {"train": [lambda: [sets.row(1)]]})


def test_nothing_is_printed_downloaded_or_imported_from_tensorflow(tmp_path):
    # It seems to be installed, and says so to who imports it.
    installed = tmp_path / "installed" / "tensorflow"
    installed.mkdir(parents=True)
    installed.joinpath("__init__.py").write_text("print('TensorFlow is imported')")
    program = """
        import socket
        import sys
        from pathlib import Path

        sys.path.insert(0, sys.argv[2])

        def no_network(*address):
            raise AssertionError(f"asks the network for {address}")

        socket.getaddrinfo = no_network
        from pea_jax.data.read.loader import make_loader
        from tests.data import sets

        source = sets.source(Path(sys.argv[1]))
        loader = make_loader(source, native_batch=2, parallel_batch=2, seed=0, image_size=8,
                             native_tokenizer=sets.tokenize, english_tokenizer=sets.tokenize)
        next(loader)
        loader.close()
        assert not {"torch", "apache_beam", "transformers"} & set(sys.modules)
    """
    arguments = [str(tmp_path / "data"), str(installed.parent)]
    # tensorflow-datasets with protobuf 6, see pyproject.toml.
    quiet = ["-W", "error", "-W", "ignore:label() is deprecated:DeprecationWarning"]
    command = [sys.executable, *quiet, "-c", textwrap.dedent(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
