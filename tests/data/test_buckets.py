"""Which bucket a picture goes to, and which buckets there are."""

import math

import numpy as np
import pytest

from pea_jax.data import buckets
from pea_jax.data.buckets import BucketWarning, allot, bucket_problems, nearest

WIDE, SQUARE, TALL = (4, 8, 0.5), (6, 6, 0.25), (8, 4, 0.25)
SIZES = [WIDE[:2], SQUARE[:2], TALL[:2]]


def sides(*pictures):
    heights, widths = zip(*pictures, strict=True)
    return np.array(heights), np.array(widths)


def test_a_picture_goes_to_the_aspect_that_has_to_be_cropped_least(rng):
    """The crop is smallest when the ratio of the two aspects is nearest to 1."""
    pictures = rng.integers(1, 3000, (500, 2))
    sizes = [bucket[:2] for bucket in buckets.SDXL]
    found = nearest(*pictures.T, sizes)
    for (height, width), place in zip(pictures, found, strict=True):
        kept = []
        for other_height, other_width in sizes:
            scale = max(other_height / height, other_width / width)
            kept.append(other_height * other_width / (height * width * scale**2))
        assert kept[place] == pytest.approx(max(kept))
    assert len(set(found)) == len(sizes)


def test_order_and_area_do_not_count():
    pictures = sides((400, 800), (30, 29), (2000, 900))
    assert nearest(*pictures, SIZES).tolist() == [0, 1, 2]
    assert nearest(*pictures, SIZES[::-1]).tolist() == [2, 1, 0]
    assert nearest(*pictures, [(7, 7)]).tolist() == [0, 0, 0]


@pytest.mark.parametrize("sizes", [[(2, 3), (3, 2)], [(3, 2), (2, 3)], [(448, 896), (896, 448)]])
def test_halfway_goes_to_the_taller(sizes):
    """The last digit of a logarithm does not decide."""
    height, width = sizes[nearest(*sides((640, 640)), sizes)[0]]
    assert height > width


def test_every_row_has_a_bucket_and_none_is_empty():
    rows = sides((1, 2), (1, 1), (2, 1), (5, 9))
    used, places = allot({"native": rows, "parallel": rows}, [WIDE, SQUARE, TALL])
    assert used == (WIDE, SQUARE, TALL)
    assert places["native"].tolist() == places["parallel"].tolist() == [0, 1, 2, 0]


def test_a_bucket_that_a_part_lacks_is_left_out_and_its_rows_go_to_the_nearest():
    native = sides((1, 2), (10, 12), (10, 11))
    parallel = sides((1, 2), (1, 1), (2, 1), (2, 1), (9, 5))
    with pytest.warns(BucketWarning) as caught:
        used, places = allot({"native": native, "parallel": parallel}, [WIDE, SQUARE, TALL])
    assert used == (WIDE, SQUARE)
    assert places["native"].tolist() == [0, 1, 1]
    assert places["parallel"].tolist() == [0, 1, 1, 1, 1]
    (warning,) = caught
    assert str(warning.message) == (
        "bucket 8x4 has no native rows: it is left out, and its 3 other rows go to the nearest "
        "aspects that remain"
    )


def test_parts_without_a_bucket_in_common_meet_in_one():
    """Dropping both at once would leave none."""
    with pytest.warns(BucketWarning, match="bucket 8x4 has no native rows"):
        used, places = allot(
            {"native": sides((1, 2), (1, 3)), "parallel": sides((2, 1))}, [WIDE, TALL]
        )
    assert used == (WIDE,)
    assert places["parallel"].tolist() == [0]


def test_a_picture_without_a_size_is_refused():
    with pytest.raises(ValueError, match=r"at least 1 pixel, got \{'native': 0\}"):
        allot({"native": sides((1, 2), (0, 3))}, [WIDE, TALL])


def test_what_cannot_be_is_named():
    assert bucket_problems(buckets.SDXL) == bucket_problems(()) == []
    wrong = [[4, 8, 0.5], (4, 8), (4, 8, 0.0), (4, 8, -1.0), (4, 8, math.nan), (4, 8, "1"), 7]
    for bad in (*wrong, (0, 8, 1.0), (4.0, 8, 1.0)):
        (message,) = bucket_problems([bad])
        assert message == f"expected (height, width, probability), all positive, got {bad!r}"
    messages = bucket_problems([(4, 8, 0.5), (8, 16, 0.5), (4, 8, 0.1), (4, 4, 0)])
    assert len(messages) == 3
    assert messages[0] == "expected one bucket of an aspect, got 4x8 and 8x16"
    assert messages[1] == "expected one bucket of an aspect, got 4x8 and 4x8"


def test_the_papers_sizes():
    """method.md, "Official training settings", which has width before height."""
    paper = {(448, 896): 0.0049, (768, 512): 0.2939, (640, 640): 0.2208, (896, 448): 0.0215}
    mine = {(width, height): probability for height, width, probability in buckets.SDXL}
    assert paper.items() <= mine.items()
    assert len(mine) == 9
    assert sum(mine.values()) == pytest.approx(1, abs=1e-3)
    assert all(side % 64 == 0 for size in mine for side in size)
    assert buckets.largest(buckets.SDXL) == (640, 640)
