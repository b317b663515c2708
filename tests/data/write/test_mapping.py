import numpy as np
import pytest

from pea_jax.data.origins.record import Record
from pea_jax.data.write import mapping
from pea_jax.data.write.mapping import FieldMapping, Texts, UnfitError


def record(name="0001", shard="laion/00000", **fields):
    return Record(name, shard, b"picture", fields)


def texts(fields, **settings):
    return FieldMapping(**settings).texts(record(**fields))


def test_captions_are_the_first_fields_that_say_something():
    settings = {"caption": ("zh", "texts.zh", "all.1"), "caption_en": ("en",)}
    assert texts({"zh": " 一 ", "en": "one"}, **settings) == Texts("一", "one", "zh", False)
    assert texts({"zh": " ", "texts": {"zh": "二"}}, **settings) == Texts("二", "", "zh", True)
    assert texts({"all": ["one", "三"], "en": None}, **settings).caption == "三"
    assert texts({"all": np.array([b"one", "四".encode()], object)}, **settings).caption == "四"
    assert texts({"all": ["one"]}, **settings).caption == ""
    # A field whose name has a dot is that field.
    assert texts({"texts.zh": "五", "texts": {"zh": "二"}}, **settings).caption == "五"


@pytest.mark.parametrize("value", [3, ["a"], {"a": "b"}, True])
def test_what_is_no_text_is_no_caption(value):
    with pytest.raises(UnfitError, match=mapping.NOT_TEXT):
        texts({"caption": value})


@pytest.mark.parametrize("value", [b"\xff", "\udcff"])
def test_text_that_is_no_utf_8_is_found_where_it_is_used(value):
    with pytest.raises(UnfitError, match=mapping.NOT_UTF8):
        texts({"caption": value})
    assert texts({"caption": "好", "other": value}).caption == "好"


def test_native_is_a_rule_or_a_field():
    def native(fields, **settings):
        return texts({"caption": "好", **fields}, caption_en=("en",), **settings).native

    assert [native({"en": text}, native="unpaired") for text in ("good", "", None)] == [
        False,
        True,
        True,
    ]
    assert native({"en": "good"}, native="always")
    assert not native({}, native="never")
    by_field = {"native": "", "native_field": "z"}
    true, false = (1, True, "true", "Yes", b"1", np.True_), (0, False, "FALSE", "no", np.int32(0))
    assert all(native({"z": value}, **by_field) for value in true)
    assert not any(native({"z": value}, **by_field) for value in false)
    for value in (None, "", "perhaps", 2, 0.5, "\udcff"):
        with pytest.raises(UnfitError):
            native({"z": value}, **by_field)


def test_the_language_is_fixed_or_a_field():
    assert texts({"caption": "x", "l": "ja"}, language="", language_field="l").language == "ja"
    assert (
        texts({"caption": "x", "l": b"pt-BR"}, language="", language_field="l").language == "pt-BR"
    )
    assert texts({"caption": "x"}, language="", language_field="l").language == ""
    for value in ("chinese", "zh-Hans-CN-variant", "语"):
        with pytest.raises(UnfitError, match=mapping.NOT_LANGUAGE):
            texts({"caption": "x", "l": value}, language="", language_field="l")


def test_keys_are_made_of_names_and_fields():
    found = record(id=7, url="http://x/1.jpg", empty="", key="of a field")
    assert FieldMapping().key_of(found) == "laion/00000/0001"
    assert FieldMapping(key="{name}").key_of(found) == "0001"
    assert FieldMapping(key="wukong-{id}").key_of(found) == "wukong-7"
    assert FieldMapping(key="{url}#{name}").key_of(found) == "http://x/1.jpg#0001"
    for key in ("{empty}", "{none}"):
        with pytest.raises(UnfitError, match=mapping.NO_KEY):
            FieldMapping(key=key).key_of(found)
    with pytest.raises(UnfitError, match=mapping.NOT_UTF8):
        FieldMapping(key="{name}").key_of(record("\udcff"))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # English of LAION with its translation.
        (
            {"caption_ori": "a cat", "caption_en": "a cat", "caption_zh": "一只猫"},
            Texts("一只猫", "a cat", "zh", False),
        ),
        # What was written in Chinese is native, whichever key has it and what else there is.
        ({"caption_ori": "红烧狮子头"}, Texts("红烧狮子头", "", "zh", True)),
        (
            {"caption_ori_zh": "红烧狮子头", "caption_en": "lion's head", "caption_zh": "狮子的头"},
            Texts("红烧狮子头", "", "zh", True),
        ),
        (
            {"caption_ori": "a", "caption_ori_zh": "b", "caption_ori_en": "佳能 EOS"},
            Texts("佳能 EOS", "", "zh", True),
        ),
        ({"caption_ori": "一", "caption_ori_zh": "二"}, Texts("一", "", "zh", True)),
        # Japanese and Korean have Chinese characters too.
        (
            {"caption_ori": "日本の写真", "caption_en": "photo", "caption_zh": "照片"},
            Texts("照片", "photo", "zh", False),
        ),
        (
            {"caption_ori": "한국 韓國", "caption_en": "Korea", "caption_zh": "韩国"},
            Texts("韩国", "Korea", "zh", False),
        ),
        # Half a pair is none; the row is rejected by what is missing.
        ({"caption_en": "a cat"}, Texts("", "a cat", "zh", False)),
        ({"caption_zh": "一只猫", "caption_ori": None}, Texts("一只猫", "", "zh", False)),
        ({}, Texts("", "", "zh", False)),
    ],
)
def test_the_authors_keys(fields, expected):
    assert texts(fields, preset="official") == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "laion"}, r"mapping.preset: expected one of \('', 'official'\), got 'laion'"),
        ({"language": ""}, "mapping.language: expected either"),
        ({"language_field": "l"}, "mapping.language: expected either"),
        ({"language": "chinese"}, "mapping.language: expected a code such as 'zh', got 'chinese'"),
        ({"native": "maybe"}, "mapping.native: expected one of .* got 'maybe'"),
        ({"native_field": "z"}, "mapping.native: expected ''"),
        ({"caption": ()}, "mapping.caption: expected a field"),
        ({"key": "all the same"}, "mapping.key: expected {name}"),
        ({"preset": "official", "caption": ("txt",)}, "mapping.caption: the preset decides it"),
        ({"preset": "official", "language": "ja"}, "mapping.language: the preset is of 'zh'"),
        ({"native": "x", "key": "x"}, "mapping.native.*; mapping.key"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        FieldMapping(**settings)
