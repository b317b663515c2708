"""The world is exact: the oracle reads back what was drawn, and no held-out scene is trained on."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageFont

from pea_jax import tinyworld
from pea_jax.tinyworld import captions, oracle, splits, world

ALL = [s for split in ("train", "test") for n in (False, True) for s in splits.scenes(split, n)]


def test_oracle_reads_true_renders():
    rng = np.random.default_rng(0)
    shift = world.MAX_SHIFT
    wrong = [s for s in ALL if oracle.read(world.render(s, *rng.uniform(-shift, shift, 2))) != s]
    assert len(wrong) <= 0.01 * len(ALL), wrong


def test_oracle_survives_the_blur_of_a_decoder():
    rng = np.random.default_rng(1)
    scenes = ALL[::3]
    right = 0
    for scene in scenes:
        image = Image.fromarray(world.render(scene, 1.3, -2.6)).filter(ImageFilter.GaussianBlur(1))
        noisy = np.asarray(image) + rng.normal(0, 5, (64, 64, 3))
        right += oracle.read(np.clip(noisy, 0, 255).astype(np.uint8)) == scene
    assert right >= 0.99 * len(scenes)


def test_oracle_sees_nothing_in_noise_and_in_an_empty_picture():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert oracle.read(noise).shape == "none"
    snow = np.full((64, 64, 3), world.BACKGROUNDS["snow"], np.uint8)
    assert oracle.read(snow) == world.Scene("none", "none", "none", "snow")


def test_oracle_refuses_another_size():
    with pytest.raises(ValueError, match=r"expected uint8 \[64, 64, 3\], got uint8 \(32, 32, 3\)"):
        oracle.read(np.zeros((32, 32, 3), np.uint8))


def test_a_figure_stays_in_the_picture():
    with pytest.raises(ValueError, match="at most 4 pixels"):
        world.render(ALL[0], 9.0, 0.0)


def test_splits_are_disjoint_complete_and_even():
    for native, kinds, held_out in ((False, world.SHAPES, 64), (True, world.MOTIFS, 48)):
        train, test = splits.scenes("train", native), splits.scenes("test", native)
        assert len(test) == held_out
        assert not set(train) & set(test)
        assert len({*train, *test}) == len(kinds) * 8 * 2 * 4
        for field in ("shape", "colour", "size", "background"):
            counts = Counter(getattr(s, field) for s in test)
            assert len(set(counts.values())) == 1, (field, counts)


def test_every_held_out_pair_of_values_is_trained_on():
    for native in (False, True):
        train, test = splits.scenes("train", native), splits.scenes("test", native)
        for a, b in (("shape", "colour"), ("shape", "size"), ("colour", "background")):
            seen = {(getattr(s, a), getattr(s, b)) for s in train}
            assert {(getattr(s, a), getattr(s, b)) for s in test} <= seen


@pytest.mark.parametrize("language", captions.LANGUAGES)
def test_captions_tell_scenes_apart(language):
    for template in range(len(captions.TEMPLATES[language])):
        texts = {captions.caption(s, language, template) for s in ALL}
        assert len(texts) == len(ALL)


def test_adjectives_agree_with_their_noun():
    star = world.Scene("star", "red", "small", "snow")
    heart = world.Scene("heart", "red", "small", "snow")
    assert captions.caption(star, "ru") == "маленькая красная звезда на снегу"
    assert captions.caption(heart, "ru") == "маленькое красное сердце на снегу"
    assert captions.caption(star, "it") == "piccola stella rossa sulla neve"
    assert captions.caption(heart, "it") == "piccolo cuore rosso sulla neve"


def test_literal_names_a_motif_otherwise_than_english_does():
    for scene in splits.scenes("test", True):
        assert captions.literal(scene) != captions.caption(scene, "en")
    with pytest.raises(ValueError, match="only a motif"):
        captions.literal(world.Scene("star", "red", "small", "snow"))


def test_unknown_language_is_named():
    with pytest.raises(ValueError, match="'tlh' is none of en, zh"):
        captions.caption(ALL[0], "tlh")


def test_the_font_has_every_glyph_of_the_captions():
    font = ImageFont.truetype(tinyworld.FONT, 16)
    missing = np.asarray(font.getmask("\uffff"))
    glyphs = {c for s in ALL for lang in captions.LANGUAGES for c in captions.caption(s, lang)}
    boxes = [c for c in glyphs - {" "} if np.array_equal(np.asarray(font.getmask(c)), missing)]
    assert not boxes
