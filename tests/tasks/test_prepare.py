"""`pea-jax prepare` from the command line, on tars with every kind of fault."""

import collections
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pea_jax.assembly import data_factory
from pea_jax.cli import config as configs
from pea_jax.cli import main
from pea_jax.data import images, paths, schema
from pea_jax.data.origins import ORIGINS, Origin, files, tables, tars
from pea_jax.data.origins import sets as named_sets
from pea_jax.data.origins.record import Record
from pea_jax.data.read.source import DatasetError, Source
from pea_jax.data.write import filters, mapping, parts, rows
from pea_jax.tasks import prepare
from pea_jax.tinyworld import dataset, splits
from tests.data import sets
from tests.data.photographs import bomb, crop, dumped, encoded, unusual, write_tar

FOLDER = Path(__file__).parents[2]
BASE = FOLDER / "configs" / "base.py"


def config(data_dir, name, **fields):
    made = configs.load(BASE)
    changes = {"data.dataset": name, "data.data_dir": str(data_dir)}
    changes |= {f"prepare.{field.replace('__', '.')}": value for field, value in fields.items()}
    made.update_from_flattened_dict(changes)
    return made


def test_a_set_is_found_by_its_name_and_reported(tmp_path, capsys):
    sets.source(tmp_path)
    source = data_factory.open_split("small", tmp_path)
    assert (source.split, len(source)) == ("train", sum(sets.COUNTS.values()))
    prepare.prepare(config(tmp_path, "small"))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"small is in {source.folder}:",
        "  ja: 7 parallel rows, 5 native rows",
        "  zh: 23 parallel rows, 13 native rows",
    ]


def test_a_set_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DatasetError, match="no data set 'photos'"):
        prepare.prepare(config(tmp_path, "photos"))
    assert not list(tmp_path.iterdir())


def test_tinyworld_is_built_where_it_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dataset, "scenes", lambda *split: splits.scenes(*split)[::100])
    monkeypatch.setattr(dataset, "VARIANTS", {"train": 1, "test": 1})
    monkeypatch.setenv("HOME", str(tmp_path))
    dataset.fingerprint.cache_clear()
    source = data_factory.open_split("tinyworld", "~/data", "test")
    assert source.folder.is_relative_to(tmp_path / "data")
    assert source.languages == ("it", "ja", "ko", "ru", "zh")
    assert "building the tinyworld data set" in capsys.readouterr().out
    assert data_factory.open_split("tinyworld", "~/data", "test").folder == source.folder
    assert capsys.readouterr().out == ""
    dataset.fingerprint.cache_clear()


# The tars: 2,000 pictures and every fault.

TARS, PICTURES = 20, 2_000
PARALLEL = {"caption_en": "a picture", "caption_zh": "一张图片"}
NATIVE = {"caption_ori": "紅燒獅子頭，no. 7"}
SCORES = {"aesthetic_score": 6.5, "watermark": 0.1}
#: Of the table.
WIDTH = "150"
#: The smallest picture below is 96x96.
MIN_AREA = 64 * 64
SETTINGS = {
    "origin": "tars",
    "mapping__preset": "official",
    "filters__min_area": MIN_AREA,
    "filters__max_aspect": 4.0,
    "filters__min_aesthetic": 6.0,
    "filters__max_watermark": 0.5,
}


def faults(rng):
    """Samples that make no row: (reason, members of the sample) by name."""
    picture = encoded(crop(rng))
    good = dumped({**PARALLEL, **SCORES})

    def sample(image=picture, text=good):
        return [("jpg", image), ("json", text)]

    def fields(**changes):
        return dumped({**PARALLEL, **SCORES, **changes})

    return {
        "truncated": (images.UNREADABLE, sample(picture[: len(picture) * 2 // 3])),
        "truncated_png": (images.UNREADABLE, sample(encoded(crop(rng), "PNG")[:-5000])),
        "no_image_at_all": (images.UNREADABLE, sample(b"<html>404</html>")),
        "empty": (rows.EMPTY, sample(b"")),
        "long": (filters.STRETCHED, sample(encoded(Image.new("RGB", (20_000, 10))))),
        "dot": (filters.SMALL, sample(encoded(Image.new("RGB", (1, 1))))),
        "bomb": (rows.HUGE, sample(bomb())),
        "true_bomb": (rows.HUGE, sample(encoded(Image.new("1", (12_000, 12_000)), "PNG"))),
        "no_json": (tars.NO_TEXT, [("jpg", picture)]),
        "bad_json": (tars.BAD_JSON, sample(text=good[:-9])),
        "no_picture": (tars.NO_PICTURE, [("json", good)]),
        "bad_utf8": (mapping.NOT_UTF8, sample(text=good.replace("图".encode(), b"\xe5\x9b"))),
        "surrogate": (mapping.NOT_UTF8, sample(text=good.replace(b"a picture", b"\\ud83d"))),
        "no_caption": (schema.NO_CAPTION, sample(text=fields(caption_zh=None))),
        "no_english": (schema.NO_CAPTION_EN, sample(text=fields(caption_en=" "))),
        "ugly": (filters.UGLY, sample(text=fields(aesthetic_score=5.9))),
        "unscored": (filters.NO_AESTHETIC, sample(text=dumped({**PARALLEL, "watermark": 0.1}))),
        "watermarked": (filters.WATERMARKED, sample(text=fields(watermark=0.9))),
        "untranslated": (rows.OTHER_SCRIPT, sample(text=fields(caption_zh="a picture"))),
    }


def whole_samples(path, end):
    """Names of the samples that lie before a place in a tar, in bytes."""
    with tarfile.open(path) as tar:
        members = [each for each in tar if each.name.endswith(".json")]
    return [each.name[: -len(".json")] for each in members if each.offset_data + each.size <= end]


@dataclasses.dataclass
class Planted:
    """Tars with their expected rows by key, and rejected keys by reason."""

    folder: Path
    rows: dict[str, tuple]
    rejected: dict[str, list[str]]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("tars")
    good, rejected = {}, collections.defaultdict(list)
    members = {f"{number:05d}": [] for number in range(TARS)}
    shards = list(members)

    def add(shard, name, image, size, fields):
        members[shard] += [(f"{name}.jpg", image), (f"{name}.json", dumped(fields))]
        native = "caption_ori" in fields
        caption = "红烧狮子头，.7" if native else PARALLEL["caption_zh"]
        english = "" if native else PARALLEL["caption_en"]
        good[f"{shard}/{name}"] = (caption, english, "zh", native, *size, image)

    for number in range(PICTURES):
        picture = crop(rng)
        fields = {**NATIVE} if number % 4 == 0 else {**PARALLEL, **SCORES}
        shard, size = shards[number % TARS], (picture.height, picture.width)
        add(shard, f"{number:06d}", encoded(picture, quality=85), size, fields)
    for number, (name, (image, *size)) in enumerate(unusual(crop(rng)).items()):
        add(shards[number], f"odd_{name}", image, size, {**PARALLEL, **SCORES})
    # Each fault up to three times, in different tars.
    planted = faults(rng)
    for number, (name, (reason, sample)) in enumerate(planted.items()):
        for copy in range(1 + number % 3):
            shard, stem = shards[(number + 7 * copy) % (TARS - 2)], f"fault_{name}_{copy}"
            members[shard] += [(f"{stem}.{suffix}", data) for suffix, data in sample]
            rejected[reason].append(f"{shard}/{stem}")
    # A sample twice in its tar: the first is kept.
    for shard in shards[3:5]:
        (first, image), (second, text) = members[shard][:2]
        members[shard] += [(first, encoded(crop(rng))), (second, text)]
        rejected[parts.REPEATED_KEY].append(f"{shard}/{first.removesuffix('.jpg')}")
    for shard, content in members.items():
        write_tar(folder / f"{shard}.tar", content)
    # Half a tar: what is in its first half are rows.
    last = shards[-1]
    path = folder / f"{last}.tar"
    half = path.stat().st_size // 2
    left = {f"{last}/{name}" for name in whole_samples(path, half)}
    path.write_bytes(path.read_bytes()[:half])
    assert 10 < len(left) < 90
    for key in [key for key in good if key.startswith(last) and key not in left]:
        del good[key]
    rejected[tars.DAMAGED].append(last)
    return Planted(folder, good, dict(rejected))


def command(planted, data_dir, *more, name="planted"):
    fields = {f"prepare.{field.replace('__', '.')}": value for field, value in SETTINGS.items()}
    fields |= {
        "data.dataset": name,
        "data.data_dir": str(data_dir),
        "prepare.where.train": f"{planted.folder}/{{00000..{TARS - 1:05d}}}.tar",
        "train.compilation_cache": "",
    }
    overrides = [f"--config.{field}={value}" for field, value in fields.items()]
    return ["prepare", "--config", str(BASE), *overrides, *more]


def content(folder):
    """Every row of a set, in order, and its report."""
    source = Source(folder, "train")
    report = json.loads(paths.report_file(folder).read_text("utf-8"))["train"]
    return [source[number] for number in range(len(source))], report


@pytest.fixture(scope="module")
def prepared(planted, tmp_path_factory):
    """The set built by the command line in two processes: its folder, and the finished command."""
    data_dir = tmp_path_factory.mktemp("data")
    done = subprocess.run(
        [sys.executable, "-m", "pea_jax", *command(planted, data_dir, "--workers=2")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": WIDTH},
    )
    assert done.returncode == 0, done.stderr
    return paths.folder_of(data_dir, "planted"), done


def test_every_good_row_is_there_once_as_it_was(planted, prepared):
    made, report = content(prepared[0])
    assert len({row.key for row in made}) == len(made) == report["kept"]
    assert {row.key: dataclasses.astuple(row)[1:] for row in made} == planted.rows
    assert len(made) > PICTURES * 0.95


def test_the_report_names_every_fault_with_its_count(planted, prepared):
    _, report = content(prepared[0])
    expected = {reason: len(keys) for reason, keys in planted.rejected.items()}
    assert report["rejected"] == dict(sorted(expected.items()))
    for reason, keys in planted.rejected.items():
        assert set(report["examples"][reason]) <= set(keys)
        assert len(report["examples"][reason]) == min(len(keys), 5)


def test_the_command_ends_with_a_table(planted, prepared):
    folder, done = prepared
    lines = done.stdout.splitlines()
    native = sum(row[3] for row in planted.rows.values())
    assert lines[-3:] == [
        f"more examples are in {folder}/report.json",
        f"planted is in {folder}:",
        f"  zh: {len(planted.rows) - native} parallel rows, {native} native rows",
    ]
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    table = {reason: (count, example) for reason, count, example in cells}
    assert table["kept"] == (f"{len(planted.rows):,}", "")
    for reason, keys in planted.rejected.items():
        count, example = table[reason]
        assert count == str(len(keys))
        assert example in keys
    assert f"{TARS}/{TARS} shards, {len(planted.rows):,} kept" in done.stderr


def test_killed_at_any_moment_and_run_again_it_is_the_same_set(planted, prepared, tmp_path):
    arguments = command(planted, tmp_path, "--workers=2")

    def done():
        return len(list(tmp_path.glob(f"planted/unfinished*/*/{parts.REPORT}")))

    for wanted in (2, 9):
        process = subprocess.Popen(
            [sys.executable, "-m", "pea_jax", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while done() < wanted and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert wanted <= done() < TARS
    # The parts that are done are not made again, and another number of processes is no matter.
    subprocess.run([sys.executable, "-m", "pea_jax", *arguments[:-1]], check=True)
    folder = paths.folder_of(tmp_path, "planted")
    assert content(folder) == content(prepared[0])
    index = paths.index_file(folder, "train")
    assert index.read_bytes() == paths.index_file(prepared[0], "train").read_bytes()


def test_a_set_that_is_there_is_reported_and_not_made_again(planted, prepared, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", WIDTH)
    folder, done = prepared
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert main.main(command(planted, folder.parents[1])) == 0
    assert capsys.readouterr().out == done.stdout
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_a_set_of_other_settings_or_files_is_refused(planted, prepared, capsys, tmp_path):
    data_dir = prepared[0].parents[1]
    status = main.main(command(planted, data_dir, "--config.prepare.filters.min_area=1"))
    error = capsys.readouterr().err
    assert status == 1
    assert error.count("\n") == 1
    assert "filters.min_area" in error
    more = f"--config.prepare.where.train={write_tar(tmp_path / 'x.tar', [])}"
    assert main.main(command(planted, data_dir, more)) == 1
    assert "was made from something else" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "status", "message"),
    [
        (["prepare.origin=zip"], 1, "prepare.origin: expected one of ('tars', 'table', "),
        (["prepare.where.train=NOWHERE/*.tar"], 1, "no file (*.tar, "),
        (["prepare.where.train="], 1, "prepare.where.train: expected names, got ''"),
        (["prepare.where.train=()"], 1, "prepare.where.train: expected a name or more, got none"),
        (["prepare.rows_per_shard=0"], 1, "prepare.rows_per_shard: expected 1 or more, got 0"),
        (["data.dataset=tinyworld"], 1, "data.dataset: expected a name for what is made"),
        (["data.dataset=../x"], 1, "../x"),
        (["prepare.mapping.native=x", "prepare.filters.min_area=-1"], 1, "; prepare.filters.min_a"),
        (["prepare.mapping.caption_fr=x"], 2, "no field prepare.mapping.caption_fr"),
        (["prepare.filters.min_area=big"], 2, "big"),
        (["prepare.where.test=TARS/00000.tar"], 1, "is in prepare.where.test and .train"),
        (["prepare.mapping.preset=", "prepare.mapping.language=it"], 1, "has no row to keep"),
        (["prepare.mapping.key={uuid}"], 1, "the first 1 samples have no 'uuid', but caption"),
        (["prepare.origin="], 1, "prepare.origin: expected one of ('tars', 'table', "),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, capsys, overrides, status, message):
    sample = [("a.jpg", b"no picture"), ("a.json", b'{"caption": ""}')]
    write_tar(tmp_path / "00000.tar", sample)
    fields = ["data.dataset=set", f"data.data_dir={tmp_path}/data", "prepare.origin=tars"]
    # Given anew, a field with several values adds to them.
    if not any("where.train" in each for each in overrides):
        fields.append(f"prepare.where.train={tmp_path}/00000.tar")
    fields += [each.replace("TARS", str(tmp_path)) for each in overrides]
    arguments = ["prepare", "--config", str(BASE), *(f"--config.{field}" for field in fields)]
    assert main.main(arguments) == status
    output = capsys.readouterr()
    (line,) = [line for line in output.err.splitlines() if "shards" not in line]
    assert message in line
    assert output.out == ""


def test_processes_and_beam_are_one_or_the_other(capsys):
    arguments = ["--workers=2", "--beam_pipeline_options=runner=DirectRunner"]
    assert main.main(["prepare", "--config", str(BASE), *arguments]) == 2
    assert "expected --workers or --beam_pipeline_options" in capsys.readouterr().err
    assert main.main(["prepare", "--config", str(BASE), "--workers=0"]) == 2
    assert "--workers: expected 1 or more, got 0" in capsys.readouterr().err


def test_of_samples_with_one_key_in_several_tars_the_first_is_kept(tmp_path, rng, capsys):
    pictures = [encoded(crop(rng)) for _ in range(4)]
    for number, pair in enumerate([pictures[:2], pictures[2:]]):
        files = [("0.jpg", pair[0]), ("0.json", dumped({"caption": "一只猫"}))]
        files += [(f"{number}x.jpg", pair[1]), (f"{number}x.json", dumped({"caption": "一只狗"}))]
        write_tar(tmp_path / f"{number}.tar", files)
    fields = ["data.dataset=set", f"data.data_dir={tmp_path}/data", "prepare.origin=tars"]
    fields += [f"prepare.where.train={tmp_path}/*.tar", "prepare.mapping.key={name}"]
    assert (
        main.main(["prepare", "--config", str(BASE), *(f"--config.{each}" for each in fields)]) == 0
    )
    source = Source(paths.folder_of(tmp_path / "data", "set"), "train")
    assert [source[number].key for number in range(len(source))] == ["0", "0x", "1x"]
    assert [source[number].image for number in range(3)] == [*pictures[:2], pictures[3]]
    report = json.loads(paths.report_file(source.folder).read_text("utf-8"))["train"]
    assert report["rejected"] == {parts.REPEATED_KEY: 1}
    assert parts.REPEATED_KEY in capsys.readouterr().out


TABLE = files.File("/anywhere/t.csv", "t", 99)
#: Shards of each origin, and the digest that the recipes of existing sets have of them.
RECIPES = {
    "tars": (
        [
            tars.TarShard(files.File("/anywhere/a/00.tar", "a/00", 10)),
            tars.TarShard(files.File("/anywhere/a/01.tar", "a/01", 20)),
        ],
        "aef530046401345f6a5813b51723fc055c1a21b383578ca2a5e33fa82b7ae9b7",
    ),
    "table": (
        [
            tables.TableShard(TABLE, "file", 0, 2, 12, ("file", "caption")),
            tables.TableShard(TABLE, "file", 2, 1, 40, ("file", "caption")),
        ],
        "3ba04272a83491086069e4530a0450d606893a29bb81d2548ecced1ac174b431",
    ),
    "hugging_face": (
        [named_sets.SetShard(named_sets.Named("a/x", "train", "x"), "0f1e", "image", 0, 5, repr)],
        "efc257d848c1be0fbec06f5164ef86001692cd9d6da986f7dd9e7f4d751c0e9a",
    ),
    "tfds": (
        [
            named_sets.SetShard(
                named_sets.Named("small", "train[:50%]", "small"),
                "small/1.0.0 ab",
                "image",
                5,
                5,
                repr,
            )
        ],
        "9d3fbc3f4eeeb4279dee82ad5071ebb4bc4e9f8e2347c1fe5dcb069f875caed9",
    ),
}


@pytest.mark.parametrize("origin", ORIGINS)
def test_recipes_of_existing_sets_do_not_change(tmp_path, origin):
    """With another recipe, sets and parts of earlier versions would be refused."""
    shards, digest = RECIPES[origin]
    recipe = prepare._recipe(config(tmp_path, "set", origin=origin), {"train": shards})
    assert recipe["names_and_sizes_of_files"] == {"train": digest}
    settings = {"origin", "where", "mapping", "captions", "filters", "names_and_sizes_of_files"}
    if origin != "tars":
        settings |= {"image", "rows_per_shard"}
    assert recipe.keys() == settings


@dataclasses.dataclass(frozen=True)
class OneRecord:
    source: str
    size: int
    image: bytes = dataclasses.field(repr=False)

    def __call__(self):
        yield Record("0", self.source, self.image, {"caption": f"图{self.size}"})


def test_a_new_origin_is_one_row_of_the_table(tmp_path, rng, monkeypatch):
    image = encoded(crop(rng))
    made = Origin(
        lambda where, rows_per_shard: [OneRecord(name, rows_per_shard, image) for name in where],
        ("rows_per_shard",),
    )
    monkeypatch.setitem(ORIGINS, "mine", made)
    changes = {"origin": "mine", "where__train": ("a", "b"), "rows_per_shard": 7}
    prepare.prepare(config(tmp_path, "small", **changes))
    source = data_factory.open_split("small", tmp_path)
    assert [(row.key, row.caption) for row in (source[0], source[1])] == [
        ("a/0", "图7"),
        ("b/0", "图7"),
    ]
    recipe = json.loads(paths.recipe_file(source.folder).read_text("utf-8"))
    assert recipe["rows_per_shard"] == 7
    assert "image" not in recipe


def test_splits_and_tables_go_the_same_way(tmp_path, rng):
    (tmp_path / "pictures").mkdir()
    lines = []
    for number in range(7):
        (tmp_path / "pictures" / f"{number}.jpg").write_bytes(encoded(crop(rng)))
        lines.append({"file": f"pictures/{number}.jpg", "text": f"картина {number}", "en": "x"})
    tables = {"train": lines[:5], "test": lines[5:]}
    for split, some in tables.items():
        (tmp_path / f"{split}.jsonl").write_bytes(b"\n".join(map(dumped, some)))
    changes = {
        "origin": "table",
        "image": "file",
        "rows_per_shard": 2,
        "mapping__caption": ("text",),
        "mapping__caption_en": ("en",),
        "mapping__language": "ru",
    }
    where = {f"where__{split}": (f"{tmp_path}/{split}.jsonl",) for split in tables}
    prepare.prepare(config(tmp_path / "data", "small", **changes, **where))
    for split, some in tables.items():
        source = data_factory.open_split("small", tmp_path / "data", split)
        found = [source[number] for number in range(len(source))]
        assert [(row.key, row.caption, row.caption_en, row.language) for row in found] == [
            (f"{split}/{number}", line["text"], "x", "ru") for number, line in enumerate(some)
        ]
    assert len(list(paths.folder_of(tmp_path / "data", "small").glob("*train*of-00003"))) == 3
