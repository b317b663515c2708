from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from pea_jax.data.origins.record import Record
from pea_jax.data.write import peek
from pea_jax.data.write.filters import Filters
from pea_jax.data.write.mapping import FieldMapping


def records(*fields: dict, image: bytes | None = b"picture") -> list[Record]:
    return [Record(str(number), "shard", image, each) for number, each in enumerate(fields)]


@pytest.mark.parametrize(
    ("mapping", "errors", "warned"),
    [
        ({"caption": ("zh", "txt"), "caption_en": ("texts.en",)}, [], []),
        ({"caption": ("captoin",)}, ["mapping.caption: the first 2 samples have no 'captoin'"], []),
        ({"caption": ("zh",), "caption_en": ("english",)}, [], ["mapping.caption_en"]),
        ({"caption": ("zh",), "key": "{shard}/{uuid}"}, ["mapping.key={uuid}"], []),
        ({"caption": ("zh",), "language": "", "language_field": "l"}, ["language_field"], []),
        ({"caption": ("zh",), "native": "", "native_field": "n"}, ["native_field"], []),
        ({"preset": "official"}, ["no 'caption_ori' and no"], ["caption_en"]),
    ],
)
def test_a_field_that_no_sample_has_is_reported_before_anything_is_made(mapping, errors, warned):
    found = records({"zh": "猫", "texts": {"en": "a cat"}}, {"zh": None, "url": "u"})
    messages = peek.missing(found, "", FieldMapping(**mapping), Filters())
    for lines, expected in zip(messages, (errors, warned), strict=True):
        assert len(lines) == len(expected)
        for line, words in zip(lines, expected, strict=True):
            assert words in line
            assert line.endswith("but texts, url, zh")


def test_scores_are_looked_for_where_they_are_asked_for():
    found = records({"caption": "猫"})
    assert peek.missing(found, "", FieldMapping(), Filters()) == ([], [])
    asking = Filters(min_aesthetic=5.0, max_watermark=0.5)
    _, warned = peek.missing(found, "", FieldMapping(), asking)
    assert [line.split(":")[0] for line in warned] == [
        "prepare.mapping.aesthetic",
        "prepare.mapping.watermark",
    ]


def test_pictures_are_looked_for_where_a_field_holds_them():
    found = records({"caption": "猫"}, image=None)
    errors, _ = peek.missing(found, "file", FieldMapping(), Filters())
    assert errors == ["prepare.image: the first 1 samples have no 'file', but caption"]
    assert peek.missing(found, "", FieldMapping(), Filters()) == ([], [])


@dataclass(frozen=True)
class Shard:
    records: Sequence[Record]
    read: list[str]
    source: str = ""

    def __call__(self):
        for record in self.records:
            self.read.append(record.shard)
            yield record


def test_damaged_samples_say_nothing():
    damaged = Record("0", "shard", None, {}, "json can't be read")
    assert peek.samples([Shard([damaged], [])] * 3) == []
    assert peek.missing([], "file", FieldMapping(caption=("zh",)), Filters()) == ([], [])


def test_a_few_samples_of_shards_all_over_are_read():
    read = []
    shards = [
        Shard([Record(str(place), str(number), b"", {}) for place in range(1000)], read)
        for number in range(100)
    ]
    found = {record.shard for record in peek.samples(shards)}
    assert len(found) <= peek.SHARDS
    assert {"0", "91"} <= found
    assert len(read) <= peek.SHARDS * (peek.SAMPLES + 1)
