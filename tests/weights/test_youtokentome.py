"""Vocabularies of YouTokenToMe: its merges, in its order, by hand."""

import pickle

import numpy as np
import pytest

from pea_jax.weights.load import WeightsError
from pea_jax.weights.tokenizers import Tokenizer
from pea_jax.weights.youtokentome import RuCLIPTokenizer

SPACE, A, B, V, K = range(4, 9)
CHARACTERS = dict(zip("\u2581абвк", (SPACE, A, B, V, K), strict=True))
#: аб, _аб, бв, кбв, аа, and аба in two ways.
AB, _AB, BV, KBV, AA, AB_A, A_BA = 20, 21, 22, 23, 24, 25, 26
MERGES = [
    (A, B, AB),
    (SPACE, AB, _AB),
    (B, V, BV),
    (K, BV, KBV),
    (A, A, AA),
    (AB, A, AB_A),
    (A, BV, A_BA),
]
UNKNOWN, PAD, BOS, EOS = 1, 0, 2, 3


def write(file, lines: list[str] | None = None):
    lines = lines or [
        f"{len(CHARACTERS)} {len(MERGES)}",
        *(f"{ord(character)} {index}" for character, index in CHARACTERS.items()),
        *(" ".join(map(str, merge)) for merge in MERGES),
        f"{UNKNOWN} {PAD} {BOS} {EOS}",
    ]
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture
def hf_tokenizer(tmp_path):
    return RuCLIPTokenizer(write(tmp_path / "bpe.model"))


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", []),
        ("аб", [_AB]),
        ("АБ\t кбв ", [_AB, SPACE, KBV]),  # lower case; any white space parts words
        ("абв", [_AB, V]),  # the earlier merge wins, and takes the letter from the later
        ("каа", [SPACE, K, AA]),
        ("ааа", [SPACE, AA, A]),  # the leftmost of one merge
        ("аxyб", [SPACE, A, UNKNOWN, B]),  # a run of strangers is one
        ("xy", [SPACE, UNKNOWN]),
        ("каба", [SPACE, K, AB_A]),
    ],
)
def test_ids(hf_tokenizer, text, ids):
    assert hf_tokenizer(text)["input_ids"] == [BOS, *ids, EOS]


def test_padding_cutting_and_pickling(hf_tokenizer):
    tokenizer = Tokenizer(hf_tokenizer, 5)
    for one in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
        ids, mask = one(["аб", "аб кбв кбв"])
        np.testing.assert_array_equal(ids, [[BOS, _AB, EOS, PAD, PAD], [BOS, _AB, SPACE, KBV, EOS]])
        np.testing.assert_array_equal(mask, [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
        assert one.cut("аб кбв кбв") == "кбв"
        assert one.cut("аб кбв") == ""


def test_from_a_folder(tmp_path):
    write(tmp_path / "bpe.model")
    tokenizer = Tokenizer.from_folder(tmp_path, 4, kind=RuCLIPTokenizer)
    assert tokenizer(["аб"])[0].tolist() == [[BOS, _AB, EOS, PAD]]


@pytest.mark.parametrize(
    "lines",
    [
        ["not numbers"],
        ["1 0", f"{ord('a')} 4", "1 0 2 3"],  # no space
        ["1 1", f"{0x2581} 4", "1 0 2 3"],  # a merge is missing
        ["1 1", f"{0x2581} 4", "4 9 20", "1 0 2 3"],  # of a token that isn't there
        ["1 0", f"{0x2581} 4", "1 0 -1 -1"],  # without an end token
        ["1 0", f"{0x2581} 4", "1 0 2 3", "7"],
    ],
)
def test_a_broken_model_is_refused(tmp_path, lines):
    file = write(tmp_path / "bpe.model", lines)
    with pytest.raises(WeightsError, match=r"bpe\.model: .*YouTokenToMe"):
        RuCLIPTokenizer(file)
