"""Language encoders in their authors' layouts: our ids and tokens against transformers' own.

Every model is a small random one of transformers. open_clip's and cn_clip's files are made of it by
renaming its tensors to what those packages call them: both packages want a torchvision that the CPU
build of PyTorch cannot load.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import transformers

from pea_jax.weights.encoder_folder import write_encoders
from pea_jax.weights.language import (
    export_problems,
    load_language_encoder,
    read_language_config,
    read_tokenizers,
)
from pea_jax.weights.load import WeightsError
from tests.parity.reference import jitted, randomise, relative_error
from tests.weights.conftest import native_tokenizer, write_json

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file
from sentencepiece import sentencepiece_model_pb2

TOLERANCE = 1e-5
LENGTH = 12

#: A prompt of the longest length, one that is cut, one with other characters, and the empty one.
TEXTS = ["一个红色的大圆形abc", "红色的大圆形一个红色的大圆形", "a  bc", ""]

BERT = {
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "attn_implementation": "eager",
}
XLMR = {
    **BERT,
    "max_position_embeddings": 20,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


@dataclasses.dataclass
class Case:
    """A folder as published, and what it stands for.

    Attributes:
      folder: of the encoder.
      tokens: of the reference: ids and mask of torch -> [B, L, D].
      tokenize: texts -> ids and mask, by transformers alone.
    """

    folder: Path
    tokens: Callable
    tokenize: Callable


def padded(tokenizer, length: int = LENGTH) -> Callable:
    def tokenize(texts):
        rows = tokenizer(texts, padding="max_length", truncation=True, max_length=length)
        return np.array(rows["input_ids"]), np.array(rows["attention_mask"])

    return tokenize


def last_hidden_state(model) -> Callable:
    return lambda ids, mask: model(input_ids=ids, attention_mask=mask).last_hidden_state


def state(model, prefix: str = "", **others: torch.Tensor) -> dict[str, torch.Tensor]:
    tensors = {prefix + key: value.contiguous() for key, value in model.state_dict().items()}
    return tensors | {key.replace("__", "."): value for key, value in others.items()}


def write_vocabulary(folder: Path) -> transformers.BertTokenizer:
    """vocab.txt alone, as Chinese-CLIP is published; the tokenizer that reads it."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"一个红色的大圆abc", "##b", "##c"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return transformers.BertTokenizer(str(folder / "vocab.txt"))


def sentencepieces(file: Path, special: dict[str, int]) -> Callable:
    """A vocabulary of sentencepiece, one piece a character; texts -> its ids."""
    model = sentencepiece_model_pb2.ModelProto()
    kinds = {"<unk>": 2}  # UNKNOWN, and CONTROL for the others
    for piece in special:
        model.pieces.add(piece=piece, score=0.0, type=kinds.get(piece, 3))
    for rank, piece in enumerate("\u2581一个红色的大圆形abc"):
        model.pieces.add(piece=piece, score=-float(rank + 1))
    model.trainer_spec.model_type = 1  # UNIGRAM
    for name in ("unk", "bos", "eos", "pad"):
        piece = {"bos": "<s>", "eos": "</s>"}.get(name, f"<{name}>")
        setattr(model.trainer_spec, f"{name}_id", special.get(piece, -1))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(model.SerializeToString())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    return lambda texts: [processor.encode(text) for text in texts]


def framed(rows: list[list[int]], begin: list[int], end: list[int], padding: int):
    """Rows cut and padded to LENGTH between what a model puts around them; and their mask."""
    room = LENGTH - len(begin) - len(end)
    rows = [[*begin, *row[:room], *end] for row in rows]
    ids = np.array([row + [padding] * (LENGTH - len(row)) for row in rows])
    return ids, np.array([[1] * len(row) + [0] * (LENGTH - len(row)) for row in rows])


def open_clip(folder: Path, name: str, config: dict | None) -> Case:
    """The published repository: one file of everything, tokenizer.json, and a config or none."""
    model = randomise(
        transformers.XLMRobertaModel(transformers.XLMRobertaConfig(**XLMR), add_pooling_layer=False)
    )
    tensors = state(
        model,
        "text.transformer.",
        text__transformer__embeddings__position_ids=torch.arange(20)[None],
        text__proj__0__weight=torch.ones(3, 2),
        text__proj__2__weight=torch.ones(2, 3),
        visual__conv1__weight=torch.ones(2, 3, 4, 4),
        visual__ln_post__bias=torch.ones(2),
        logit_scale=torch.tensor(1.0),
    )
    folder.mkdir()
    torch.save(tensors, folder / name) if name.endswith(".bin") else save_file(
        tensors, folder / name
    )
    native_tokenizer().save_pretrained(folder)
    for file in folder.glob("*.json"):
        if file.name != "tokenizer.json":
            file.unlink()
    if config is not None:
        write_json(folder / "open_clip_config.json", config)
    return Case(folder, last_hidden_state(model), padded(native_tokenizer()))


def open_clip_pickle(folder: Path) -> Case:
    """As laion/CLIP-ViT-H-14-frozen-xlm-roberta-large-... is: a pickle and no config."""
    return open_clip(folder, "open_clip_pytorch_model.bin", None)


def open_clip_safetensors(folder: Path) -> Case:
    text = {"hf_model_name": "small", "hf_model_config": XLMR | {"model_type": "xlm-roberta"}}
    config = {"model_cfg": {"embed_dim": 8, "text_cfg": text}}
    return open_clip(folder, "open_clip_model.safetensors", config)


def chinese_clip(folder: Path) -> Case:
    """Saved by transformers: safetensors with both sides, vocab.txt and no word of a tokenizer."""
    text = {**BERT, "max_position_embeddings": 16, "type_vocab_size": 2}
    config = transformers.ChineseCLIPConfig(
        text_config=text, vision_config=VISION, attn_implementation="eager"
    )
    model = randomise(transformers.ChineseCLIPModel(config))
    model.save_pretrained(folder)
    return Case(folder, last_hidden_state(model.text_model), padded(write_vocabulary(folder)))


def chinese_clip_pickle(folder: Path) -> Case:
    """The same as OFA-Sys publishes it: a pickle, and a buffer that transformers saved then."""
    case = chinese_clip(folder)
    (file,) = folder.glob("*.safetensors")
    # Not through from_pretrained, which makes the padding's embedding zero.
    tensors = load_file(file)
    file.unlink()
    tensors["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    torch.save(tensors, folder / "pytorch_model.bin")
    return case


def cn_clip(folder: Path) -> Case:
    """clip_cn_vit-h-14.pt of the cn_clip package: a training checkpoint, no config."""
    config = transformers.BertConfig(**BERT, max_position_embeddings=16, hidden_act="gelu")
    model = randomise(transformers.BertModel(config))
    tensors = state(
        model,
        "module.bert.",
        module__text_projection=torch.ones(128, 8),
        module__logit_scale=torch.tensor(1.0),
        module__visual__class_embedding=torch.ones(4),
    )
    assert "module.bert.pooler.dense.weight" in tensors
    tokenizer = write_vocabulary(folder)
    torch.save({"epoch": 15, "state_dict": tensors}, folder / "clip_cn_vit-h-14.pt")

    def tokenize(texts):
        """cn_clip.clip.tokenize, by hand."""
        ids = np.zeros((len(texts), LENGTH), np.int64)
        for row, text in zip(ids, texts, strict=True):
            words = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))
            words = [2, *words[: LENGTH - 2], 3]
            row[: len(words)] = words
        return ids, (ids != 0).astype(np.int64)

    return Case(folder, last_hidden_state(model), tokenize)


def dual_encoder(folder: Path) -> Case:
    """As clip-italian/clip-italian: a BERT beside a ViT of CLIP."""
    bert = transformers.BertConfig(**BERT, max_position_embeddings=16)
    vision = transformers.CLIPVisionConfig(**VISION)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(vision, bert)
    model = randomise(transformers.VisionTextDualEncoderModel(config))
    model.save_pretrained(folder)
    tokenizer = write_vocabulary(folder)
    tokenizer.save_pretrained(folder)
    return Case(folder, last_hidden_state(model.text_model), padded(tokenizer))


def alt_clip(folder: Path) -> Case:
    """As BAAI/AltCLIP-m9: a pickle, and a vocabulary of sentencepiece."""
    config = transformers.AltCLIPConfig(
        text_config={**XLMR, "project_dim": 48}, vision_config=VISION, attn_implementation="eager"
    )
    model = randomise(transformers.AltCLIPModel(config))
    model.save_pretrained(folder)
    # What save_pretrained writes has the published keys; the module's own are others by now.
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors["text_model.roberta.embeddings.position_ids"] = torch.arange(20)[None]
    torch.save(tensors, folder / "pytorch_model.bin")
    special = {"<unk>": 0, "<s>": 1, "</s>": 2}
    pieces = sentencepieces(folder / "sentencepiece.bpe.model", special)

    def tokenize(texts):
        """XLM-R's own order: <s> 0, <pad> 1, </s> 2, <unk> 3, and sentencepiece's from 3 at 4."""
        rows = [[index + 1 if index else 3 for index in row] for row in pieces(texts)]
        return framed(rows, [0], [2], 1)

    return Case(folder, last_hidden_state(model.text_model), tokenize)


def t5(folder: Path, kind: type, config: transformers.PretrainedConfig) -> Case:
    model = randomise(kind(config))
    model.save_pretrained(folder)
    pieces = sentencepieces(folder / "spiece.model", {"<pad>": 0, "</s>": 1, "<unk>": 2})
    encoder = model.get_encoder()
    return Case(folder, last_hidden_state(encoder), lambda texts: framed(pieces(texts), [], [1], 0))


T5 = {
    "vocab_size": 64,
    "d_model": 32,
    "d_kv": 12,  # heads times it is not the width
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 6,
    "attn_implementation": "eager",
}


def mt5(folder: Path) -> Case:
    """As google/mt5-xl: a pickle of both halves, each with the embedding that they share."""
    config = transformers.MT5Config(**T5, feed_forward_proj="gated-gelu")
    case = t5(folder, transformers.MT5ForConditionalGeneration, config)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    file.unlink()
    for half in ("encoder", "decoder"):
        tensors[f"{half}.embed_tokens.weight"] = tensors["shared.weight"].clone()
    tensors.setdefault("lm_head.weight", tensors["shared.weight"].clone())
    torch.save(tensors, folder / "pytorch_model.bin")
    return case


def t5_encoder(folder: Path) -> Case:
    """The encoder alone, with T5's first MLP, as transformers saves it."""
    return t5(folder, transformers.T5EncoderModel, transformers.T5Config(**T5))


def ru_clip(folder: Path) -> Case:
    """As ai-forever/ruclip-vit-*: OpenAI's names, and a vocabulary of YouTokenToMe."""
    config = transformers.CLIPTextConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        hidden_act="quick_gelu",
        attn_implementation="eager",
    )
    model = randomise(transformers.CLIPTextModel(config))
    tensors = {}
    for key, value in model.state_dict().items():
        key = key.removeprefix("text_model.")
        for theirs, ours in (
            ("embeddings.token_embedding", "token_embedding"),
            ("embeddings.position_embedding.weight", "positional_embedding"),
            ("encoder.layers", "transformer.resblocks"),
            (".layer_norm", ".ln_"),
            (".self_attn", ".attn"),
            (".fc1", ".c_fc"),
            (".fc2", ".c_proj"),
            ("final_layer_norm", "ln_final"),
        ):
            key = key.replace(theirs, ours)
        tensors[key] = value
    for layer in ("transformer.resblocks.0", "transformer.resblocks.1"):
        for leaf in ("weight", "bias"):
            parts = [tensors.pop(f"{layer}.attn.{part}_proj.{leaf}") for part in "qkv"]
            tensors[f"{layer}.attn.in_proj_{leaf}"] = torch.cat(parts)
    tensors |= {"text_projection": torch.ones(16, 8), "logit_scale": torch.tensor(1.0)}
    tensors |= {"visual.conv1.weight": torch.ones(2, 3, 4, 4), "visual.proj": torch.ones(2, 8)}
    folder.mkdir()
    torch.save(tensors, folder / "pytorch_model.bin")
    sizes = {"transformer_width": 16, "transformer_heads": 2, "transformer_layers": 2}
    write_json(folder / "config.json", sizes | {"vocab_size": 64, "context_length": LENGTH})
    characters = "\u2581一个红色的大圆abc"
    lines = [f"{len(characters)} 0", *(f"{ord(c)} {4 + i}" for i, c in enumerate(characters))]
    (folder / "bpe.model").write_text("\n".join([*lines, "1 0 2 3"]))

    def tokenize(texts):
        """One token a character, without a merge; of ruclip.processor by hand."""
        ids = np.zeros((len(texts), LENGTH), np.int64)
        for row, text in zip(ids, texts, strict=True):
            marked = "".join(f"\u2581{word}" for word in text.split())
            known = [characters.index(c) + 4 if c in characters else 1 for c in marked]
            known = [2, *known[: LENGTH - 2], 3]
            row[: len(known)] = known
        return ids, (ids != 0).astype(np.int64)

    return Case(folder, last_hidden_state(model), tokenize)


CASES = [
    open_clip_pickle,
    open_clip_safetensors,
    chinese_clip,
    chinese_clip_pickle,
    cn_clip,
    dual_encoder,
    alt_clip,
    mt5,
    t5_encoder,
    ru_clip,
]


@pytest.fixture(scope="module", params=CASES, ids=lambda make: make.__name__)
def case(request, tmp_path_factory) -> Case:
    return request.param(tmp_path_factory.mktemp("published") / request.param.__name__)


def test_ids_and_tokens(case):
    """Padded, cut, longest and empty; and one prompt alone."""
    encoder = load_language_encoder(case.folder, max_length=LENGTH)
    ids, mask = encoder.tokenizer(TEXTS)
    expected, expected_mask = case.tokenize(TEXTS)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(mask, expected_mask)
    assert mask.sum(axis=1).max() == LENGTH
    assert mask.sum(axis=1).min() < 4
    with torch.no_grad():
        want = case.tokens(torch.from_numpy(expected), torch.from_numpy(expected_mask))
    run = jitted(encoder.tower)
    assert encoder.width == want.shape[-1] == read_language_config(case.folder).width
    assert relative_error(run(ids, mask).tokens, want) < TOLERANCE
    assert relative_error(run(ids[2:3], mask[2:3]).tokens, want[2:3]) < TOLERANCE


def test_a_folder_for_transformers_is_the_same_encoder(case, tmp_path):
    """What an export holds: layouts that no class of transformers reads, made readable."""
    config = read_language_config(case.folder)
    assert export_problems(config) == []
    entries, cleaned = write_encoders(tmp_path, config, LENGTH)
    model, saved = (
        getattr(transformers, entries[name][1]).from_pretrained(tmp_path / name)
        for name in ("language_encoder", "language_tokenizer")
    )
    model.eval()
    ids, mask = (torch.from_numpy(array) for array in case.tokenize(TEXTS))
    with torch.no_grad():
        want = case.tokens(ids, mask)
        got = model(ids, attention_mask=mask)[0]
    assert relative_error(got, want) < TOLERANCE

    (tokenizer,) = read_tokenizers(config, LENGTH)
    assert saved.model_max_length == LENGTH
    assert cleaned == (tokenizer.clean is not None)
    texts = [tokenizer.clean(text) if tokenizer.clean else text for text in TEXTS]
    rows = saved(texts, padding="max_length", truncation=True, return_tensors="np")
    np.testing.assert_array_equal(rows.input_ids, ids)


def test_three_encoders_are_written(tmp_path):
    makers = (t5_encoder, ru_clip, chinese_clip)
    folders = [make(tmp_path / make.__name__).folder for make in makers]
    config = read_language_config("+".join(map(str, folders)))
    entries, _ = write_encoders(tmp_path / "out", config, LENGTH)
    assert {name: kind for name, (_, kind) in entries.items()} == {
        "language_encoder": "T5EncoderModel",
        "language_tokenizer": "T5Tokenizer",
        "language_encoder_2": "CLIPTextModel",
        "language_tokenizer_2": "PreTrainedTokenizerFast",
        "language_encoder_3": "BertModel",
        "language_tokenizer_3": "BertTokenizer",
    }
    assert {folder.name for folder in (tmp_path / "out").iterdir()} == set(entries)


def test_two_encoders_are_concatenated(tmp_path):
    """ids side by side; tokens of both, the shorter followed by zeros, one beside the other."""
    first, second = open_clip_safetensors(tmp_path / "mul"), mt5(tmp_path / "t5")
    name = f"{first.folder}+{second.folder}"
    config = read_language_config(name)
    assert config.width == 128 + 32
    assert config.longest == 18  # XLM-R's; T5 takes any
    with pytest.raises(WeightsError, match="at most 18 tokens, got 77"):
        load_language_encoder(name)
    encoder = load_language_encoder(name, max_length=LENGTH)
    assert [part.folder for part in config.parts] == [first.folder, second.folder]
    assert (encoder.width, encoder.tokenizer.max_length) == (160, 2 * LENGTH)
    ids, mask = encoder.tokenizer(TEXTS)
    rows = [part.tokenize(TEXTS) for part in (first, second)]
    np.testing.assert_array_equal(ids, np.concatenate([one for one, _ in rows], axis=1))
    np.testing.assert_array_equal(mask, np.concatenate([one for _, one in rows], axis=1))
    with torch.no_grad():
        want = torch.cat(
            [
                part.tokens(torch.from_numpy(one), torch.from_numpy(own))
                for part, (one, own) in zip((first, second), rows, strict=True)
            ],
            dim=-1,
        )
    run = jitted(encoder.tower)
    assert relative_error(run(ids, mask).tokens, want) < TOLERANCE
    assert relative_error(run(ids[2:3], mask[2:3]).tokens, want[2:3]) < TOLERANCE
