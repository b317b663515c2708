import time
import unicodedata

import pytest

from pea_jax.data.write import captions
from pea_jax.data.write.captions import Cleaning


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("紅燒獅子頭", "红烧狮子头"),
        ("【新款】iPhone 14 手机壳，买2送1！", "【新款】14手机壳，买2送1！"),
        ("Hello, world! 你好", "你好"),
        ("佳能（Canon）相机", "佳能相机"),
        ("《》“Star Wars”星球大战", "星球大战"),
        ("红，blue，绿", "红，绿"),
        ("一😀二\u200b三", "一二三"),
        ("价格：￥９９ 元", "价格：９９元"),
        ("红，(（a），b），绿", "红，(，），绿"),
        ("，（），。红。，绿。", "红。，绿。"),
        ("々〇㐂𠮷", "々〇㐂𠮷"),
        ("only English", ""),
        ("2018, 100%", ""),
    ],
)
def test_native_chinese_keeps_what_the_paper_keeps(text, expected):
    assert Cleaning().clean(text, "zh", native=True) == expected


def test_a_caption_of_brackets_takes_no_time():
    begin = time.perf_counter()
    brackets = "（" * 100_000 + "a" + "）" * 100_000
    assert captions.strip_chinese(f"{brackets}红") == "红"
    assert time.perf_counter() - begin < 5  # each pair in a pass of its own would take minutes


def test_parts_of_the_cleaning_can_be_left_out():
    text = "紅燒 lion 獅子頭"
    assert Cleaning(strip_native=False).clean(text, "zh", native=True) == "红烧 lion 狮子头"
    assert Cleaning(simplify=False).clean(text, "zh", native=True) == "紅燒獅子頭"
    assert Cleaning().clean(text, "zh-TW", native=True) == "紅燒獅子頭"
    assert Cleaning().clean(text, "zh-Hans", native=True) == "红烧狮子头"


@pytest.mark.parametrize(("language", "native"), [("zh", False), ("ja", True), ("en", False)])
def test_other_captions_keep_every_letter(language, native):
    text = "紅燒 lion 獅子頭 ♥"
    assert Cleaning().clean(text, language, native=native) == text


def test_all_captions_are_nfc_with_single_blanks():
    text = "Cafe\u0301\t\n  \u3000a\u00a0b\x00c\u2028 가 "
    clean = Cleaning().clean(text, "ko", native=False)
    assert clean == "Café a b c 가"
    assert unicodedata.is_normalized("NFC", clean)
    # Compatibility ideographs have one form.
    assert Cleaning().clean("\uf900", "zh", native=False) == "\u8c48"


@pytest.mark.parametrize(
    ("language", "text", "fits"),
    [
        ("zh", "一只猫", True),
        ("zh", "a cat", False),
        ("zh", "一只 cat", True),
        ("zh", "日本の写真です", False),
        ("zh-Latn", "yi zhi mao", True),
        ("zh-Latn", "一只猫", False),
        ("ja", "日本の写真です", True),
        ("ja", "ネコ", True),
        ("ja", "кошка", False),
        ("ko", "산 위의 절", True),
        ("ko", "mountain", False),
        ("ru", "старый храм", True),
        ("ru", "staryj khram", False),
        ("it", "un antico tempio", True),
        ("it", "древний храм", False),
        ("en", "a cat", True),
        ("en", "一只猫", False),
        ("sr-Cyrl", "mačka", False),
        ("sr", "mačka", True),
        ("th", "แมว", True),
        # A language that is not in the table accepts any letters, but needs some.
        ("am", "ድመት", True),
        ("am", "123 😀", False),
        ("zh", "2018！", False),
        ("zh", "", False),
    ],
)
def test_captions_are_in_the_script_of_their_language(language, text, fits):
    assert Cleaning().fits(text, language) is fits


def test_the_share_of_letters_that_must_be_in_the_script_is_a_setting():
    text = "猫 is a cat"  # 1 of 7 letters
    shares = (0.0, 0.142, 0.143, 1.0)
    assert [Cleaning(min_script_share=share).fits(text, "zh") for share in shares] == [
        True,
        True,
        False,
        False,
    ]
    assert Cleaning(min_script_share=0.0).fits("123", "zh")
    with pytest.raises(ValueError, match=r"captions\.min_script_share: expected 0 to 1, got 30"):
        Cleaning(min_script_share=30.0)


def test_every_script_of_the_tables_is_one_of_unicode():
    for scripts in (*captions.SCRIPTS.values(), *captions._TAGS.values()):
        assert captions._letters_of(scripts).pattern
