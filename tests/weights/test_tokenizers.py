"""Texts into ids of a fixed length."""

import json
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pea_jax.weights import tokenizers as tokenizer_module
from pea_jax.weights.load import WeightsError
from pea_jax.weights.tokenizers import JoinedTokenizer, Tokenizer, open_clip_clean
from tests.weights.conftest import english_tokenizer, native_tokenizer


def english_ids(text: str) -> list[int]:
    """By hand: 26 letters from 2 on, then 26 that end a word."""
    return [2 + ord(c) - ord("a") + 26 * (i == len(text) - 1) for i, c in enumerate(text)]


def test_ids_and_mask():
    ids, mask = Tokenizer(english_tokenizer(), 6)(["abc", "", "z"])
    assert ids.dtype == mask.dtype == np.int32
    start, end = 0, 1
    np.testing.assert_array_equal(
        ids,
        [
            [start, *english_ids("abc"), end, end],
            [start, end, end, end, end, end],
            [start, *english_ids("z"), end, end, end, end],
        ],
    )
    # CLIP pads with its end-of-text token; only the first one is the text's own.
    np.testing.assert_array_equal(
        mask, [[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    )


def test_no_texts():
    ids, mask = Tokenizer(english_tokenizer(), 6)([])
    assert ids.shape == mask.shape == (0, 6)


def test_one_text_is_not_a_sequence_of_letters():
    with pytest.raises(ValueError, match="expected a sequence of texts, got 'abc'"):
        Tokenizer(english_tokenizer(), 6)("abc")


def test_a_long_text_is_cut_before_its_end_token_and_logged_once(caplog):
    tokenizer = Tokenizer(english_tokenizer(), 6)
    with caplog.at_level(logging.WARNING):
        ids, mask = tokenizer(["abc defg", "abcd"])
        assert ids[0].tolist() == [0, *english_ids("abc"), 2 + 3, 1]
        assert mask.all()
        assert [record.getMessage() for record in caplog.records] == [
            "'abc defg' is longer than 6 tokens; the model does not see 'efg'"
        ]
        tokenizer(["abc defg"])
        assert len(caplog.records) == 1
        tokenizer(["abcdefgh"])
        assert len(caplog.records) == 2


def test_what_is_cut():
    tokenizer = Tokenizer(english_tokenizer(), 6)
    assert tokenizer.cut("abcd") == ""
    assert tokenizer.cut("abcde") == "e"
    assert tokenizer.cut("abcd efg hi") == "efg hi"
    chinese = Tokenizer(native_tokenizer(), 6)
    assert chinese.cut("一个红色的大圆形") == "色的大圆形"
    # The length of a call must not stay behind in the shared tokenizer.
    assert tokenizer(["abcdefgh"])[0].shape == (1, 6)


def test_not_every_cut_of_a_large_data_set_is_logged(caplog, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "MAX_LOGGED", 3)
    tokenizer = Tokenizer(english_tokenizer(), 4)
    with caplog.at_level(logging.WARNING):
        tokenizer([letter * 5 for letter in "abcdefgh"])
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 4
    assert messages[-1] == "more than 3 texts were cut; the others are not logged"


def test_a_tokenizer_may_be_pickled():
    tokenizer = Tokenizer(native_tokenizer(), 8)
    copy = pickle.loads(pickle.dumps(tokenizer))
    texts = ["一个红色", "圆"]
    np.testing.assert_array_equal(copy(texts)[0], tokenizer(texts)[0])
    assert copy.cut("一个红色的大圆形") == tokenizer.cut("一个红色的大圆形")


def test_a_tokenizer_may_be_called_from_several_threads():
    """A fast tokenizer that is called with two lengths at once raises "Already borrowed"."""
    tokenizer = Tokenizer(english_tokenizer(), 6)
    texts = ["abc", "abcdefgh", "", "abcd efgh"] * 50
    expected, _ = tokenizer(texts)
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda text: (tokenizer([text])[0][0], tokenizer.cut(text)), texts))
    np.testing.assert_array_equal([ids for ids, _ in rows], expected)
    assert [cut for _, cut in rows[:4]] == ["", "efgh", "", "efgh"]


def test_from_a_folder(tmp_path):
    english_tokenizer(model_max_length=7).save_pretrained(tmp_path)
    assert Tokenizer.from_folder(tmp_path).max_length == 7
    shorter = Tokenizer.from_folder(tmp_path, 5)
    assert shorter.max_length == 5
    np.testing.assert_array_equal(shorter(["ab"])[0], Tokenizer(english_tokenizer(), 5)(["ab"])[0])


def test_from_the_files_of_an_old_release(tmp_path):
    """vocab.json, merges.txt and a padding token of its own, as Stable Diffusion 2 has them."""
    vocab = english_tokenizer().get_vocab() | {"!": 54}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    special |= {"unk_token": "<|endoftext|>", "pad_token": "!"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 8, **special})
    )
    ids, mask = Tokenizer.from_folder(tmp_path)(["ab"])
    assert ids.tolist() == [[0, *english_ids("ab"), 1, 54, 54, 54, 54]]
    assert mask.sum() == 4


def test_a_tokenizer_without_a_length_asks_for_one(tmp_path):
    english_tokenizer(model_max_length=int(1e30)).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="give max_length"):
        Tokenizer.from_folder(tmp_path)
    assert Tokenizer.from_folder(tmp_path, 9).max_length == 9


def test_a_folder_without_a_tokenizer_is_one_line(tmp_path):
    with pytest.raises(WeightsError, match="no such folder"):
        Tokenizer.from_folder(tmp_path / "tokenizer")
    with pytest.raises(WeightsError, match="cannot read a tokenizer") as raised:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_length_without_room_for_text_is_refused():
    with pytest.raises(ValueError, match="above its 2 special tokens, got 2"):
        Tokenizer(english_tokenizer(), 2)


def test_a_tokenizer_that_pads_on_the_left_is_refused():
    hf_tokenizer = english_tokenizer()
    hf_tokenizer.padding_side = "left"
    with pytest.raises(ValueError, match="got left and right"):
        Tokenizer(hf_tokenizer, 6)


def test_a_tokenizer_without_padding_is_refused():
    hf_tokenizer = english_tokenizer()
    hf_tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no padding token"):
        Tokenizer(hf_tokenizer, 6)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  a\t b\n c ", "a b c"),
        ("&amp;lt;a&gt; &amp; b", "<a> & b"),
        ("“a” it’s", '"a" it\'s'),
        ("cafÃ©", "café"),
        ("一个\u3000红色", "一个 红色"),
        ("", ""),
    ],
)
def test_open_clip_cleans_texts(text, clean):
    assert open_clip_clean(text) == clean


def test_a_text_is_cleaned_before_it_is_tokenized_and_measured():
    tokenizer = Tokenizer(english_tokenizer(), 6, open_clip_clean)
    plain = Tokenizer(english_tokenizer(), 6)
    np.testing.assert_array_equal(tokenizer(["a&#98;c"])[0], plain(["abc"])[0])
    assert tokenizer.cut("a&#98;cd") == ""
    assert tokenizer.cut("a&#98;cdef") == "ef"
    copy = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(copy(["a&#98;c"])[0], plain(["abc"])[0])


@pytest.fixture
def joined():
    return JoinedTokenizer([Tokenizer(english_tokenizer(), 6), Tokenizer(native_tokenizer(), 9)])


def test_ids_of_two_tokenizers_lie_side_by_side(joined):
    texts = ["ab c", "", "cab"]
    ids, mask = joined(texts)
    assert ids.dtype == mask.dtype == np.int32
    assert joined.max_length == 15
    assert ids.shape == mask.shape == (3, 15)
    for columns, part in ((slice(6), joined.parts[0]), (slice(6, 15), joined.parts[1])):
        np.testing.assert_array_equal(ids[:, columns], part(texts)[0])
        np.testing.assert_array_equal(mask[:, columns], part(texts)[1])
    assert joined([])[0].shape == (0, 15)
    with pytest.raises(ValueError, match="expected a sequence of texts"):
        joined("abc")


def test_two_tokenizers_lose_what_neither_sees(joined, caplog):
    """The first takes 4 letters, the second a word's mark and 6 letters."""
    assert joined.cut("abcabc") == ""
    assert joined.cut("abcabcab") == "ab"
    with caplog.at_level(logging.WARNING):
        joined(["abcabc", "abcabcab", "abcabcab"])
    assert [record.getMessage() for record in caplog.records] == [
        "'abcabcab' is longer than 6 and 9 tokens; the model does not see 'ab'"
    ]


def test_two_tokenizers_may_be_pickled_and_called_from_threads(joined):
    copy = pickle.loads(pickle.dumps(joined))
    texts = ["abc", "abcabcab", "", "ab c"] * 25
    expected, _ = joined(texts)
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda text: copy([text])[0][0], texts))
    np.testing.assert_array_equal(rows, expected)
    assert copy.cut("abcabcab") == "ab"
