import numpy as np
import pytest

from pea_jax.evals import grid
from pea_jax.tinyworld import captions, splits


@pytest.fixture
def images(rng):
    return rng.integers(0, 200, (5, 8, 8, 3), np.uint8)


def holds(sheet, image):
    """Where `sheet` shows `image`, enlarged 16 times: (x, y), or None."""
    big = image.repeat(16, 0).repeat(16, 1)
    pixels = np.asarray(sheet)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, big.shape[:2], axis=(0, 1))
    # Only where the first pixel fits is the rest compared.
    for y, x in np.argwhere((pixels[: len(windows), : windows.shape[1]] == big[0, 0]).all(-1)):
        if (pixels[y : y + 128, x : x + 128] == big).all():
            return int(x), int(y)
    return None


def test_tiles_lie_in_reading_order(images):
    places = [holds(grid.tile(images), image) for image in images]
    assert None not in places
    assert [(x // 128, y // 128) for x, y in places] == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)]


def test_captions_are_drawn_below_their_tiles(images):
    bare = np.asarray(grid.tile(images[:2]))
    captioned = np.asarray(grid.tile(images[:2], ["红色", ""]))
    assert captioned.shape[0] > bare.shape[0]
    below = captioned[bare.shape[0] :]
    left, right = np.split(below, [below.shape[1] // 2], axis=1)
    assert left.min() < 100
    assert right.min() == 255


def test_long_captions_are_wrapped_to_the_tile(images):
    text = "a large turquoise matryoshka in the snow"
    for caption in (text, "雪地上有一个红色的小圆形雪地上有一个红色的小圆形"):
        face = grid._face(128)
        lines = grid._wrap(caption, face, 128)
        assert len(lines) > 1
        assert max(face.getlength(line) for line in lines) <= 128
        assert "".join(lines) == caption.replace(" ", "") or " ".join(lines) == caption
    one, three = grid.tile(images, ["a"] * 5), grid.tile(images, [text] * 5)
    assert three.height > one.height
    assert three.width == one.width


def test_table_puts_cells_where_headers_and_captions_say(images):
    rows = [[images[0], images[1], None], [images[2], images[3], images[4]]]
    sheet = grid.table(rows, headers=["a", "b", "c"], captions=[["一"], ["大", "large"]])
    places = [holds(sheet, image) for image in images]
    xs, ys = zip(*places, strict=True)
    assert xs[0] == xs[2] < xs[1] == xs[3] < xs[4]
    assert ys[0] == ys[1] < ys[2] == ys[3] == ys[4]
    empty = np.asarray(sheet)[ys[0] : ys[0] + 128, xs[4] : xs[4] + 128]
    assert empty.min() == 255


def test_long_captions_of_a_table_make_its_rows_higher(images):
    lines = [f"line {number}" for number in range(12)]
    sheet = grid.table([[image] for image in images[:2]], headers=["a"], captions=[lines, lines])
    (_, first), (_, second) = (holds(sheet, image) for image in images[:2])
    height = 12 * grid._line(grid._face(128))
    assert second - first == height + grid._GAP > 128 + grid._GAP
    # In the middle of its row, whose captions end below the image and above those of the next.
    assert sheet.height - (second + 128) > (height - 128) // 2
    left = np.asarray(sheet)[:, :60].min(axis=(1, 2))
    between = left[first + 64 + height // 2 : second + 64 - height // 2]
    assert between.min() == 255
    assert left[: first + 64 + height // 2].min() < 100


def test_every_caption_of_tinyworld_is_writable_and_unknown_scripts_are_not(images):
    for native in (False, True):
        for scene in splits.scenes("test", native):
            for language in captions.LANGUAGES:
                assert grid.writable(captions.caption(scene, language))
    assert not grid.writable("红色 กขค")
    with pytest.raises(ValueError, match="no glyphs for all of"):
        grid.tile(images[:1], ["กขค"])


def test_what_does_not_fit_together_is_refused(images):
    with pytest.raises(ValueError, match="at least one image"):
        grid.tile(images[:0])
    with pytest.raises(ValueError, match="captions: expected 5, got 1"):
        grid.tile(images, ["a"])
    with pytest.raises(ValueError, match="headers: expected 2, got 1"):
        grid.table([list(images[:2])], headers=["a"], captions=[["b"]])
    with pytest.raises(ValueError, match="one size"):
        grid.table([[images[0], images[1][:4]]], headers=["a", "b"], captions=[["c"]])
