"""The set that training reads: right pictures, right words, no held-out scene."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from pea_jax.data import images
from pea_jax.data.read.source import Source
from pea_jax.tinyworld import captions, dataset, oracle, splits, world


@pytest.fixture
def fewer(monkeypatch):
    """Every twentieth scene, two pictures of each: as much code, less time."""
    monkeypatch.setattr(dataset, "scenes", lambda *split: splits.scenes(*split)[::20])
    monkeypatch.setattr(dataset, "VARIANTS", {"train": 2, "test": 1})
    dataset.fingerprint.cache_clear()
    yield
    dataset.fingerprint.cache_clear()


def scene_of(row) -> world.Scene:
    return world.Scene(*row.key.split("/")[2].split("-"))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("native", [False, True])
def test_every_scene_of_a_split_is_there_in_every_language(fewer, split, native):
    made = list(dataset.rows(split, native))
    wanted = splits.scenes(split, native)[::20]
    times = dataset.VARIANTS[split]
    counts = Counter((scene_of(row), row.language) for row in made)
    languages = set(captions.LANGUAGES) - {"en"}
    assert counts == {(scene, language): times for scene in wanted for language in languages}
    assert len({row.key for row in made}) == len(made)


def test_pictures_and_words_are_of_the_scene(fewer):
    for native in (False, True):
        for row in dataset.rows("train", native, ["zh", "ru"]):
            scene, variant = scene_of(row), int(row.key.split("/")[3])
            assert oracle.read(np.asarray(Image.open(io.BytesIO(row.image)))) == scene
            assert row.caption == captions.caption(scene, row.language, variant)
            english = "" if native else captions.caption(scene, "en", variant)
            assert (row.caption_en, row.native) == (english, native)
            assert (row.height, row.width) == images.size_of(row.image) == (64, 64)


def test_the_pictures_of_a_scene_differ(fewer):
    pictures = {}
    for row in dataset.rows("train", False, ["zh"]):
        pictures.setdefault(scene_of(row), set()).add(row.image)
    same = [scene for scene, seen in pictures.items() if len(seen) == 1]
    # Two placements in 81 may fall together.
    assert len(same) <= 0.1 * len(pictures)


def test_every_template_of_a_language_is_used():
    assert dataset.VARIANTS["train"] >= max(map(len, captions.TEMPLATES.values()))


def test_the_set_is_built_once_and_read_by_training(fewer, tmp_path, monkeypatch):
    folder = dataset.prepare(tmp_path)
    source = Source(folder, "train")
    for native, part in ((True, "native"), (False, "parallel")):
        scenes = len(splits.scenes("train", native)[::20])
        for language in dataset.LANGUAGES:
            chosen = source.select(native=native, languages=[language])
            assert len(chosen) == 2 * scenes, part
    row = source[int(source.select(native=False, languages=["ko"])[3])]
    pixels = images.decode(row.image, 64, 64)
    assert oracle.read(pixels) == scene_of(row)

    def never(*arguments):
        raise AssertionError("the set is there already")

    monkeypatch.setattr(world, "render", never)
    assert dataset.prepare(tmp_path) == folder


@pytest.mark.parametrize("change", ["caption", "figure", "colour", "scenes"])
def test_a_set_of_another_world_is_not_used(fewer, monkeypatch, change):
    before = dataset.fingerprint()
    dataset.fingerprint.cache_clear()
    assert dataset.fingerprint() == before
    if change == "caption":
        templates = ("{shape}", *captions.TEMPLATES["it"][1:])
        monkeypatch.setitem(captions.TEMPLATES, "it", templates)
    elif change == "figure":
        monkeypatch.setitem(world.SIZES, "small", 12)
    elif change == "colour":
        monkeypatch.setitem(world.COLOURS, "red", (216, 36, 41))
    else:
        monkeypatch.setattr(dataset, "scenes", lambda *split: splits.scenes(*split)[::21])
    dataset.fingerprint.cache_clear()
    assert dataset.fingerprint() != before
