import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from pea_jax.data import builder
from pea_jax.data.source import Source
from tests.data import sets


def files_of(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_rows_come_back_as_they_went_in_and_in_order(tmp_path):
    made = sets.rows()
    made[3] = sets.row(
        3, caption="红烧狮子头", caption_en="« tête »", key="路/3", height=480, width=9
    )
    shards = [lambda: iter(made[:5]), lambda: made[5:6], lambda: made[6:]]
    source = Source(builder.build(tmp_path, "small", {"train": shards}), "train")
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
    shards = {"train": [lambda: made[:3], lambda: made[3:]]}
    folder = builder.build(tmp_path, "small", shards)
    source = Source(folder, "train")
    assert [source[number].key for number in range(len(source))] == ["row0", "row4"]
    report = json.loads(builder.report_file(folder).read_text())["train"]
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


def test_a_failed_build_leaves_nothing_and_can_be_repeated(tmp_path):
    def failing():
        yield sets.row(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        builder.build(tmp_path, "small", {"train": [failing]})
    assert files_of(tmp_path) == []
    folder = builder.build(tmp_path, "small", {"train": [lambda: [sets.row(1)]]})
    assert len(Source(folder, "train")) == 1


def test_a_killed_build_is_not_taken_for_a_set(tmp_path):
    program = """
        import os, signal, sys
        from pea_jax.data import builder
        from tests.data import sets

        def killed():
            yield sets.row(1)
            os.kill(os.getpid(), signal.SIGKILL)

        builder.build(sys.argv[1], "small", {"test": [lambda: [sets.row(0)]], "train": [killed]})
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert files_of(tmp_path), "the build had begun"
    assert not list(tmp_path.glob("small/1*"))
    folder = builder.build(tmp_path, "small", {"train": [lambda: [sets.row(1), sets.row(2)]]})
    assert len(Source(folder, "train")) == 2


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
        ([[sets.row(1), sets.row(2)], [sets.row(3), sets.row(2)]], "keys occur more than once"),
        ([[sets.row(1, caption="")], []], "no row to keep .*caption is missing"),
        ([[sets.row(1, language="chinese-simplified")]], "row1.*chinese-simplified"),
        ([[sets.row(1, key="")]], "needs a key"),
    ],
)
def test_what_makes_no_set_raises_and_leaves_nothing(tmp_path, made, message):
    shards = [lambda rows=rows: rows for rows in made]
    with pytest.raises(ValueError, match=message):
        builder.build(tmp_path, "small", {"train": shards})
    assert files_of(tmp_path) == []


def test_a_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "small" / builder.VERSION).mkdir(parents=True)
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
        from pea_jax.data.pipeline import make_loader
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
