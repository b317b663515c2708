"""From records to rows, and the reasons for rejecting a record."""

import numpy as np
import pytest
from PIL import Image

from pea_jax.data import images, schema
from pea_jax.data.origins.record import Record
from pea_jax.data.write import filters, mapping, rows
from pea_jax.data.write.captions import Cleaning
from pea_jax.data.write.filters import Filters
from pea_jax.data.write.mapping import FieldMapping
from tests.data.photographs import bomb, crop, encoded, unusual

RULES = rows.Rules(
    FieldMapping(caption_en=("en",)),
    Cleaning(),
    Filters(min_area=100, max_aspect=4.0, min_aesthetic=5.0),
)
GOOD = {"caption": "一只猫", "en": "a cat", "aesthetic_score": 6.0}


def apply(image, name="1", fault=None, **fields):
    return RULES.apply(Record(name, "s", image, {**GOOD, **fields}, fault))


@pytest.fixture
def photograph(rng):
    return crop(rng)


def test_a_good_record_is_a_row_with_its_picture_as_it_was(photograph):
    image = encoded(photograph)
    assert apply(image, en=" a  cat\n") == schema.Row(
        key="s/1",
        image=image,
        caption="一只猫",
        caption_en="a cat",
        language="zh",
        native=False,
        height=photograph.height,
        width=photograph.width,
    )


def test_unusual_pictures_are_good_rows(photograph):
    for name, (image, height, width) in unusual(photograph).items():
        row = apply(image)
        assert isinstance(row, schema.Row), (name, row)
        assert (row.height, row.width) == (height, width), name
        # Training decodes it.
        assert images.decode(row.image, 32, 32).shape == (32, 32, 3)


def test_what_makes_no_row_is_reported_by_its_reason(photograph):
    image = encoded(photograph)
    results = {
        rows.EMPTY: apply(b""),
        schema.NO_IMAGE: apply(None),
        images.UNREADABLE: apply(b"no picture at all"),
        rows.HUGE: apply(bomb()),
        filters.SMALL: apply(encoded(Image.new("RGB", (1, 1)))),
        filters.STRETCHED: apply(encoded(Image.new("RGB", (20_000, 10)))),
        filters.NO_AESTHETIC: apply(image, aesthetic_score=None),
        filters.UGLY: apply(image, aesthetic_score=4),
        schema.NO_CAPTION: apply(image, caption=" "),
        rows.NOTHING_LEFT: apply(image, caption="a cat", en=None),
        rows.OTHER_SCRIPT: apply(image, caption="a cat"),
        rows.OTHER_SCRIPT_EN: apply(image, en="кошка"),
        mapping.NOT_UTF8: apply(image, caption="\udcff"),
        "a fault of its origin": apply(image, fault="a fault of its origin"),
    }
    assert results == {reason: schema.Rejected("s/1", reason) for reason in results}
    # A valid picture of 50 kB that would need 400 MB.
    assert apply(encoded(Image.new("1", (20_000, 20_000)), "PNG")).reason == rows.HUGE


def test_keys_in_the_report_can_be_written(photograph):
    assert apply(b"", name="\udcff").key == "s/\\udcff"
    assert apply(None, name="", fault="x").key == "s"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_that_is_cut_short_is_found_wherever_it_is_cut(rng, kind):
    image = encoded(crop(rng), kind)
    assert images.verify(image)
    for share in (0.02, 0.1, 0.5, 0.9, 0.97):
        cut = image[: int(len(image) * share)]
        assert apply(cut).reason == images.UNREADABLE, share


def test_what_is_verified_can_be_decoded_and_what_cannot_is_not(rng):
    """After changing any byte, no picture passes `verify` and then fails in training."""
    image = bytearray(encoded(crop(rng), quality=80))
    outcomes = set()
    for place in rng.integers(2, len(image), 150):
        changed = bytes(image[:place]) + bytes([rng.integers(256)]) + bytes(image[place + 1 :])
        try:
            images.verify(changed)
        except images.CorruptImageError:
            outcomes.add("refused")
            continue
        outcomes.add("taken")
        assert images.decode(changed, 16, 16).dtype == np.uint8
    assert outcomes == {"refused", "taken"}
