"""Vocabularies of YouTokenToMe: its merges, in its order, by hand."""

import json
import pickle
import random

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import models, pre_tokenizers, trainers

from pea_jax.weights.language import export_problems, read_language_config
from pea_jax.weights.load import WeightsError
from pea_jax.weights.tokenizers import Tokenizer
from pea_jax.weights.youtokentome import RuCLIPTokenizer

SPACE, A, B, V, K = range(4, 9)
CHARACTERS = dict(zip("\u2581абвк", (SPACE, A, B, V, K), strict=True))
#: аб, _аб, бв, кбв, аа, аба, абв.
AB, _AB, BV, KBV, AA, AB_A, A_BV = 20, 21, 22, 23, 24, 25, 26
MERGES = [
    (A, B, AB),
    (SPACE, AB, _AB),
    (B, V, BV),
    (K, BV, KBV),
    (A, A, AA),
    (AB, A, AB_A),
    (A, BV, A_BV),
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


SENTENCES = (
    "красная машина едет по дороге, зимой снег падает на город; жёлтый круг слева. Мальчик читает",
    "книгу о кофе-машине за 1000 рублей в 2024 году! The red car isn't near a big house (don't)",
    "бананы бабааба ааааа аааа ааа аа η οδός του οδυσσέα στο σπίτι",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A vocabulary of 92 characters and their most frequent merges."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", prepend_scheme="always")
    texts = [sentence.lower() for sentence in SENTENCES] * 3
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False)
    library.train_from_iterator(texts, trainer)
    model = json.loads(library.to_str())["model"]
    ids = {token: index + 4 for token, index in model["vocab"].items()}
    characters = [token for token in ids if len(token) == 1]
    lines = [
        f"{len(characters)} {len(model['merges'])}",
        *(f"{ord(character)} {ids[character]}" for character in characters),
        *(f"{ids[one]} {ids[two]} {ids[one + two]}" for one, two in model["merges"]),
        f"{UNKNOWN} {PAD} {BOS} {EOS}",
    ]
    return RuCLIPTokenizer(write(tmp_path_factory.mktemp("trained") / "bpe.model", lines))


def random_texts() -> list[str]:
    """Words and characters of several scripts, in any case, with all kinds of blanks."""
    rng = random.Random(0)
    words = " ".join(SENTENCES).split()
    characters = (
        "".join(SENTENCES) + "ΣσςΆ\u0301İıßẞ你好な한é😀\u200b\u2581\u00a0\u2003\u0085\x1c\t\n\v\f\r"
    )
    texts = [
        "",
        " ",
        "\u2581",
        "<EOS>",
        "а <BOS> б<PAD>",
        "<UNK>x",
        "<eos>",
        "ΟΔΥΣΣΕΥΣ'Σ Σ ΑΣ.Σ ΑΣ.",
    ]
    texts += [" ".join(rng.choices(words, k=rng.randrange(1, 8))) for _ in range(500)]
    texts += ["".join(rng.choices(characters, k=rng.randrange(1, 14))) for _ in range(3000)]
    return [
        "".join(letter.upper() if rng.random() < 0.3 else letter for letter in text)
        for text in texts
    ] + texts


def test_the_tokenizers_library_gives_the_same_ids(trained, tmp_path):
    """As exported and read again; every character that str.lower changes is among the texts."""
    Tokenizer(trained, 20).save(tmp_path)
    fast = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    changed = [chr(code) for code in range(0x110000) if chr(code).lower() != chr(code)]
    texts = random_texts() + [f"а{letter}б {letter}" for letter in changed]
    options = {"truncation": True, "max_length": 20, "padding": "max_length"}
    slow, rows = trained(texts, **options), fast(texts, **options)
    different = [
        text
        for text, one, two in zip(texts, slow["input_ids"], rows["input_ids"], strict=True)
        if one != two
    ]
    assert different == []
    assert rows["attention_mask"] == slow["attention_mask"]
    assert len({index for row in slow["input_ids"] for index in row}) > 150
    assert fast.model_max_length == 20
    assert fast.decode(fast("красная машина").input_ids, skip_special_tokens=True) == (
        "красная машина"
    )


def test_tokens_of_the_same_text_cannot_be_exported(tmp_path):
    """The library would take аб-а and а-ба for one token."""
    merges = [(A, B, 20), (B, A, 21), (20, A, 22), (A, 21, 23)]
    lines = [f"3 {len(merges)}", *(f"{ord(c)} {i}" for c, i in (("\u2581", 4), ("а", A), ("б", B)))]
    lines += [*(" ".join(map(str, merge)) for merge in merges), "1 0 2 3"]
    tokenizer = RuCLIPTokenizer(write(tmp_path / "bpe.model", lines))
    with pytest.raises(WeightsError, match=r"bpe\.model: expected tokens of different .*, got 1"):
        Tokenizer(tokenizer, 5).save(tmp_path / "tokenizer")
    config = {"vocab_size": 27, "context_length": 8}
    config |= {f"transformer_{name}": 8 for name in ("width", "layers", "heads")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (problem,) = export_problems(read_language_config(tmp_path))
    assert problem.startswith("The tokenizer cannot be written for transformers: ")


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
