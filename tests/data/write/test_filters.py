import pytest

from pea_jax.data.write import filters
from pea_jax.data.write.filters import Filters
from pea_jax.data.write.mapping import FieldMapping, Texts, UnfitError

PARALLEL = Texts("一只猫", "a cat", "zh", native=False)
NATIVE = Texts("一只猫", "", "zh", native=True)


def reason(check, *arguments, **keywords):
    try:
        check(*arguments, **keywords)
    except UnfitError as unfit:
        return str(unfit)
    return None


@pytest.mark.parametrize(
    ("settings", "texts", "expected"),
    [
        ({}, PARALLEL, None),
        ({"languages": ("zh",)}, PARALLEL, None),
        ({"languages": ("ja", "ko")}, PARALLEL, filters.OTHER_LANGUAGE),
        ({"min_characters": 3, "max_characters": 3}, PARALLEL, None),
        ({"min_characters": 4}, PARALLEL, filters.SHORT),
        ({"max_characters": 2}, NATIVE, filters.LONG),
        ({"min_characters_en": 5, "max_characters_en": 5}, PARALLEL, None),
        ({"min_characters_en": 6}, PARALLEL, filters.SHORT_EN),
        ({"max_characters_en": 4}, PARALLEL, filters.LONG_EN),
        # A native row's English is not used.
        ({"min_characters_en": 6}, NATIVE, None),
    ],
)
def test_captions_are_of_the_languages_and_lengths_asked_for(settings, texts, expected):
    assert reason(Filters(**settings).check_texts, texts) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"a": 6, "w": 0.5}, None),
        ({"a": "6.0", "w": "0.1"}, None),  # as CSV has them
        ({"a": 5.99, "w": 0.1}, filters.UGLY),
        ({"a": 7, "w": 0.51}, filters.WATERMARKED),
        ({"w": 0.1}, filters.NO_AESTHETIC),
        ({"a": float("nan"), "w": 0.1}, filters.NO_AESTHETIC),
        ({"a": 7, "w": None}, filters.NO_WATERMARK),
        ({"a": 7, "w": "high"}, filters.NO_WATERMARK),
    ],
)
def test_scores_are_asked_of_parallel_rows_alone(fields, expected):
    mapping = FieldMapping(aesthetic="a", watermark="w")
    check = Filters(min_aesthetic=6.0, max_watermark=0.5).check_scores
    assert reason(check, fields, mapping, native=False) == expected
    assert reason(check, fields, mapping, native=True) is None
    assert reason(Filters().check_scores, fields, mapping, native=False) is None


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (640, 640, None),
        (639, 641, filters.SMALL),
        (1, 1, filters.SMALL),
        (400, 1600, None),
        (1601, 400, filters.STRETCHED),
        (10, 50_000, filters.STRETCHED),
    ],
)
def test_pictures_have_enough_pixels_and_no_extreme_aspect(height, width, expected):
    check = Filters(min_area=640 * 640, max_aspect=4.0).check_size
    assert reason(check, height, width) == expected
    assert reason(Filters().check_size, height, width) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_area": -1}, "filters.min_area: expected 0 or more, got -1"),
        ({"max_aspect": 0.5}, "filters.max_aspect: expected 1 or more, or 0, got 0.5"),
        ({"max_watermark": 50.0}, "filters.max_watermark: expected 0 to 1, got 50"),
        ({"min_aesthetic": float("nan")}, "filters.min_aesthetic: expected 0 or more, got nan"),
        ({"min_characters": 5, "max_characters": 4}, "filters.max_characters: expected 0, or 5"),
        ({"min_area": -1, "max_characters_en": -1}, "min_area.*; filters.max_characters_en"),
    ],
)
def test_bounds_that_cannot_be_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Filters(**settings)
