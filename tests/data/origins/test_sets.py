"""Sets of other packages: of Hugging Face, and of TFDS."""

import pickle

import pytest

from pea_jax.data.origins import hugging_face, tfds_sets
from pea_jax.data.origins.record import OUTSIDE
from pea_jax.data.origins.sets import named
from pea_jax.data.write import builder
from tests.data import sets
from tests.data.photographs import crop, encoded


def records(shards):
    return [list(pickle.loads(pickle.dumps(shard))()) for shard in shards]


@pytest.fixture
def saved(tmp_path, rng):
    """A set of save_to_disk, its pictures undecodable so that decoding would be seen."""
    datasets = pytest.importorskip("datasets")
    pictures = [b"no picture %d" % n for n in range(5)]
    columns = {
        "photo": [{"bytes": picture, "path": None} for picture in pictures],
        "mask": [{"bytes": b"neither", "path": None}] * 5,
        "zh": ["一", "二", None, "四", "五"],
        "all": [[f"one {n}", f"two {n}"] for n in range(5)],
    }
    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "mask": datasets.Image(),
            "zh": datasets.Value("string"),
            "all": datasets.List(datasets.Value("string")),
        }
    )
    whole = datasets.Dataset.from_dict(columns, features=features)
    whole.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": whole, "test": whole.select([4])}).save_to_disk(tmp_path / "two")
    return tmp_path


def test_rows_of_hugging_face_come_undecoded(saved):
    made = records(hugging_face.shards([str(saved / "one")], "train", "photo", 2))
    assert [len(some) for some in made] == [2, 2, 1]
    rows = [record for some in made for record in some]
    assert [record.image for record in rows] == [b"no picture %d" % n for n in range(5)]
    assert [record.fields["zh"] for record in rows] == ["一", "二", None, "四", "五"]
    assert rows[3].fields["all"] == ["one 3", "two 3"]
    assert [(record.shard, record.name) for record in rows] == [("one", str(n)) for n in range(5)]


def test_pictures_of_hugging_face_lie_in_the_folder_of_the_set(saved):
    datasets = pytest.importorskip("datasets")
    folder = saved / "three"
    folder.mkdir()
    for place in (folder, saved):
        (place / "x.jpg").write_bytes(b"picture")
    paths = [str(folder / "x.jpg"), "x.jpg", str(saved / "x.jpg"), "../x.jpg"]
    table = {"photo": [{"bytes": None, "path": path} for path in paths]}
    datasets.Dataset.from_dict(table).to_parquet(folder / "t.parquet")
    (made,) = records(hugging_face.shards([str(folder)], "train", "photo", 9))
    assert [(record.image, record.fault) for record in made] == [
        (b"picture", None),
        (b"picture", None),
        (None, OUTSIDE),
        (None, OUTSIDE),
    ]


def test_splits_of_hugging_face_are_ours_or_named(saved):
    name = str(saved / "two")

    def captions(entry, split):
        shards = hugging_face.shards([entry], split, "photo", 100)
        return [record.fields["zh"] for some in records(shards) for record in some]

    assert captions(name, "test") == ["五"]
    assert captions(f"{name}#test", "train") == ["五"]
    assert captions(f"{name}#train[:40%]", "train") == ["一", "二"]
    assert captions(f"{name}#train[3:]+test", "train") == ["四", "五", "五"]
    assert captions(f"{saved / 'one'}#train[-1:]", "test") == ["五"]
    assert len(captions(name, "train")) == 5


def test_what_hugging_face_does_not_have_is_named(saved):
    with pytest.raises(ValueError, match=r"no column 'image' of pictures, but \['photo'"):
        hugging_face.shards([str(saved / "one")], "train", "image", 2)
    with pytest.raises(ValueError, match=r"splits \['test', 'train'\], not 'valid'"):
        hugging_face.shards([str(saved / "two")], "valid", "photo", 2)


def test_sets_of_one_name_are_distinguished():
    assert [each.label for each in named(["a/x", "b/y#test"], "train")] == ["x", "y"]
    both = named(["a/x", "a/x#test"], "train")
    assert [each.label for each in both] == ["a/x#train", "a/x#test"]
    with pytest.raises(ValueError, match="a/x#train is named more than once"):
        named(["a/x", "a/x#train"], "train")


def test_without_the_package_its_sets_are_refused(monkeypatch):
    monkeypatch.setattr(hugging_face.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'pea-jax\[datasets\]'"):
        hugging_face.shards(["anything"], "train", "image", 2)


def test_rows_of_tfds_come_undecoded(tmp_path, rng):
    picture = encoded(crop(rng))
    rows = [sets.row(n, image=picture, native=n == 2) for n in range(5)]
    folder = builder.build(tmp_path, "small", {"train": [lambda: rows], "test": [lambda: rows[:1]]})
    for name in ("small", str(folder)):
        made = records(tfds_sets.shards([name], "train", "image", 2, str(tmp_path)))
        assert [len(some) for some in made] == [2, 2, 1]
        found = [record for some in made for record in some]
        assert {record.image for record in found} == {picture}
        assert [record.fields["caption"] for record in found] == [b"c%d" % n for n in range(5)]
        assert [bool(record.fields["native"]) for record in found] == [n == 2 for n in range(5)]
    (some,) = records(tfds_sets.shards(["small#test"], "train", "image", 2, str(tmp_path)))
    assert len(some) == 1
    (some,) = records(tfds_sets.shards(["small#train[:40%]"], "x", "image", 9, str(tmp_path)))
    assert len(some) == 2


def test_a_set_of_ours_with_other_rows_is_another(tmp_path):
    reprs = set()
    for place, caption in (("one", "a"), ("two", "a"), ("three", "b")):
        row = sets.row(1, caption=caption)
        builder.build(tmp_path / place, "small", {"train": [lambda row=row: [row]]})
        (shard,) = tfds_sets.shards(["small"], "train", "image", 9, str(tmp_path / place))
        reprs.add(repr(shard))
    assert len(reprs) == 2


@pytest.mark.parametrize(
    ("name", "split", "image", "message"),
    [
        ("small", "train", "photo", r"no feature 'photo' of pictures, but \['caption'"),
        ("small", "valid", "image", "valid"),
        ("nowhere", "train", "image", "nowhere"),
    ],
)
def test_what_tfds_does_not_have_is_named(tmp_path, name, split, image, message):
    builder.build(tmp_path, "small", {"train": [lambda: [sets.row(1)]]})
    with pytest.raises(ValueError, match=message):
        tfds_sets.shards([name], split, image, 2, str(tmp_path))
