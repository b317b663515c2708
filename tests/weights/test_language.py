"""A language encoder from a transformers folder."""

import json
import shutil

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from pea_jax.models.text.bert import Bert, BertConfig
from pea_jax.models.text.clip import CLIPText
from pea_jax.runtime import parallel
from pea_jax.weights import builtin_configs, encoder_files, registry
from pea_jax.weights.language import load_language_encoder, read_language_config
from pea_jax.weights.load import WeightsError
from tests.models.random_module import random_module
from tests.weights.conftest import (
    BUILDS,
    XLMR,
    english_tokenizer,
    native_tokenizer,
    write_json,
    write_part,
)
from tests.weights.test_load import assert_same
from tests.weights.test_locate import FakeHub


@pytest.fixture
def folder(xlmr_folder, tmp_path):
    """A copy to break."""
    return shutil.copytree(xlmr_folder, tmp_path / "xlm-roberta")


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_tower_tokenizer_and_width(xlmr_folder):
    encoder = load_language_encoder(xlmr_folder)
    assert_same(encoder.tower, random_module(BUILDS["language"][0]))
    assert encoder.width == 24
    ids, mask = encoder.tokenizer(["一个红色的大圆形", ""])
    assert ids.shape == (2, 16)  # the tokenizer's own length
    tokens = jax.eval_shape(encoder.tower, ids, mask).tokens
    assert tokens.shape == (2, 16, encoder.width)


def test_another_length(xlmr_folder):
    assert load_language_encoder(xlmr_folder, max_length=9).tokenizer.max_length == 9
    # 20 positions, of which RoBERTa keeps two for itself.
    assert read_language_config(xlmr_folder).longest == 18
    with pytest.raises(WeightsError, match="at most 18 tokens, got 19"):
        load_language_encoder(xlmr_folder, max_length=19)


def test_the_config_needs_no_weights(folder):
    (folder / "model.safetensors").unlink()
    assert read_language_config(folder).width == 24
    with pytest.raises(WeightsError, match=r"expected model\.safetensors"):
        load_language_encoder(folder)


def test_16_bit_over_a_mesh(xlmr_folder):
    mesh = parallel.make_mesh(data=4, fsdp=2)
    tower = load_language_encoder(xlmr_folder, dtype=jnp.bfloat16, mesh=mesh).tower
    embedding = tower.embeddings.word_embeddings.embedding.get_value()
    assert embedding.dtype == jnp.bfloat16
    assert len(embedding.sharding.device_set) == 8


def test_heads_pooler_and_prefix_of_a_published_file(folder):
    """xlm-roberta-large holds the masked language model: "roberta." before its keys, and a head."""
    file = folder / "model.safetensors"
    tensors = {f"roberta.{key}": value for key, value in load_file(file).items()}
    extras = ("lm_head.dense.weight", "lm_head.bias", "roberta.pooler.dense.weight")
    extras += ("cls.predictions.bias", "roberta.embeddings.position_ids")
    save_file(tensors | {key: np.zeros(3, np.float32) for key in extras}, file)
    assert_same(load_language_encoder(folder).tower, random_module(BUILDS["language"][0]))
    # A layer more than the config says is no head.
    extra = "roberta.encoder.layer.1.output.dense.bias"
    save_file(tensors | {extra: np.zeros(24, np.float32)}, file)
    with pytest.raises(WeightsError, match=f"extra: {extra}"):
        load_language_encoder(folder)


def test_a_clip_tower_beside_its_image_side(tmp_path):
    write_part(tmp_path, "text_encoder")
    english_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    extras = ("vision_model.embeddings.class_embedding", "logit_scale", "text_projection.weight")
    save_file(load_file(file) | {key: np.zeros(3, np.float32) for key in extras}, file)
    encoder = load_language_encoder(tmp_path)
    assert isinstance(encoder.tower, CLIPText)
    assert_same(encoder.tower, random_module(BUILDS["text_encoder"][0]))
    assert encoder.width == 16
    assert encoder.tokenizer.max_length == 12


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_type": "gpt2"}, r"expected a model_type of bert, .* got 'gpt2'"),
        ({"hidden_act": "relu"}, r"xlm-roberta: BERT config: hidden_act.*relu"),
    ],
)
def test_what_is_not_supported_names_itself(folder, changes, problem):
    edit(folder / "config.json", **changes)
    with pytest.raises(WeightsError, match=problem):
        read_language_config(folder)


def test_from_the_hub_only_what_is_needed_comes(xlmr_folder, tmp_path, monkeypatch):
    hub = FakeHub(tmp_path)
    shutil.copytree(xlmr_folder, hub.repository)
    needed = {file.name for file in xlmr_folder.iterdir()}
    for extra in ("pytorch_model.bin", "flax_model.msgpack", "onnx/model.safetensors", "README.md"):
        (hub.repository / extra).parent.mkdir(exist_ok=True)
        (hub.repository / extra).touch()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    read_language_config("some/encoder")
    assert hub.fetched == needed - {"model.safetensors"}
    load_language_encoder("some/encoder")
    assert hub.fetched == needed


def count(config: BertConfig) -> int:
    state = nnx.state(nnx.eval_shape(lambda: Bert(config, rngs=nnx.Rngs(0))))
    return sum(leaf.size for leaf in jax.tree.leaves(state))


def test_the_text_towers_that_open_clip_knows_by_name():
    """The published parameters of XLM-R, without the poolers of 1,049,600 and 590,592."""
    sizes = {
        name: BertConfig.from_dict(builtin_configs.read_config(f"{name}/config.json"))
        for name in encoder_files.OPEN_CLIP_TEXT
    }
    assert count(sizes["xlm-roberta-large"]) == 559_890_432 - 1_049_600
    assert count(sizes["xlm-roberta-base"]) == 278_043_648 - 590_592
    assert {config.longest for config in sizes.values()} == {512}


def write_open_clip(folder, config: dict | None = None):
    """open_clip's files: XLM-R's under its names beside an image side, tokenizer.json."""
    folder.mkdir(parents=True)
    write_part(folder / "part", "language")
    tensors = load_file(folder / "part" / "model.safetensors")
    shutil.rmtree(folder / "part")
    tensors = {f"text.transformer.{key}": value for key, value in tensors.items()}
    extras = ("visual.conv1.weight", "text.proj.0.weight", "text.proj.2.weight", "logit_scale")
    save_file(
        tensors | {key: np.zeros(3, np.float32) for key in extras},
        folder / "open_clip_model.safetensors",
    )
    native_tokenizer().save_pretrained(folder)
    (folder / "tokenizer_config.json").unlink()
    if config:
        write_json(folder / "open_clip_config.json", {"model_cfg": {"text_cfg": config}})
    return folder


OPEN_CLIP = {"hf_model_name": "xlm-roberta-tiny", "hf_model_config": XLMR}


def test_an_open_clip_folder(tmp_path):
    folder = write_open_clip(tmp_path / "a", OPEN_CLIP | {"context_length": 10})
    encoder = load_language_encoder(folder)
    assert_same(encoder.tower, random_module(BUILDS["language"][0]))
    assert encoder.tokenizer.max_length == 10  # its context_length
    # open_clip mends texts first.
    ids, _ = encoder.tokenizer(["a&amp;#98;  c"])
    np.testing.assert_array_equal(ids, encoder.tokenizer(["ab c"])[0])
    with pytest.raises(WeightsError, match="at most 18 tokens, got 77"):
        load_language_encoder(write_open_clip(tmp_path / "b", OPEN_CLIP))


def test_an_open_clip_of_another_text_tower_is_refused(tmp_path):
    for text, got in (({"hf_model_name": "bert-base-uncased"}, "'bert-base"), ({"width": 8}, None)):
        folder = write_open_clip(tmp_path / str(got), text)
        with pytest.raises(WeightsError, match=f"of xlm-roberta-base, .*, got {got}"):
            read_language_config(folder)


def test_a_layer_more_than_an_open_clip_s_config_is_no_image_side(tmp_path):
    config = OPEN_CLIP["hf_model_config"]
    folder = write_open_clip(tmp_path / "a", {"hf_model_config": config | {"num_hidden_layers": 2}})
    with pytest.raises(WeightsError, match=r"missing: encoder\.layer\.1\."):
        load_language_encoder(folder, max_length=9)
    file = folder / "open_clip_model.safetensors"
    extra = {"text.transformer.encoder.layer.3.output.dense.bias": np.zeros(24, np.float32)}
    save_file(load_file(file) | extra, file)
    with pytest.raises(WeightsError, match=r"extra: text\.transformer\.encoder\.layer\.3"):
        load_language_encoder(folder, max_length=9)


def test_shapes_that_are_no_bert_are_refused(tmp_path):
    """A width that heads of 64 do not divide, where no config says how many there are."""
    folder = write_open_clip(tmp_path / "a")
    with pytest.raises(WeightsError, match=r"a width that 64 divides .*, got 24"):
        read_language_config(folder)
    save_file({"visual.proj": np.zeros(3, np.float32)}, folder / "open_clip_model.safetensors")
    with pytest.raises(WeightsError, match=r"expected matrices text\.transformer\.embeddings"):
        read_language_config(folder)


def test_a_folder_of_nothing_known_says_what_is_expected(tmp_path):
    (tmp_path / "clip_cn_vit-h-14.pt").touch()
    with pytest.raises(WeightsError, match=r"expected config\.json, .* got clip_cn_vit-h-14\.pt"):
        read_language_config(tmp_path)


def test_two_checkpoints_of_cn_clip_are_refused(tmp_path):
    for name in ("clip_cn_vit-h-14.pt", "clip_cn_rn50.pt", "vocab.txt"):
        (tmp_path / name).touch()
    with pytest.raises(WeightsError, match=r"expected one clip_cn_\*\.pt, got 2"):
        read_language_config(tmp_path)


@pytest.mark.parametrize("name", ["a+", "+", " +b"])
def test_a_name_between_plusses_is_not_empty(name):
    with pytest.raises(WeightsError, match=r"names with \+ between them, got an empty one"):
        read_language_config(name)


def test_a_folder_with_a_plus_in_its_name_is_one(xlmr_folder, tmp_path):
    folder = shutil.copytree(xlmr_folder, tmp_path / "a+b")
    for name in (folder, str(folder)):
        (part,) = read_language_config(name).parts
        assert part.folder == folder


def test_two_encoders_by_name_and_folder(xlmr_folder, tmp_path, monkeypatch):
    """Each keeps its authors' length where that is shorter; the width is the sum of both."""
    clip = tmp_path / "clip"
    write_part(clip, "text_encoder")
    english_tokenizer().save_pretrained(clip)
    open_clip = write_open_clip(tmp_path / "open_clip", OPEN_CLIP | {"context_length": 7})
    name = f"{clip}+{open_clip}"
    config = read_language_config(name)
    assert (config.width, config.longest) == (16 + 24, 12)
    encoder = load_language_encoder(name, max_length=10)
    assert [part.max_length for part in encoder.tokenizer.parts] == [10, 7]
    ids, mask = encoder.tokenizer(["abc"])
    assert jax.eval_shape(encoder.tower, ids, mask).tokens.shape == (1, 10, encoder.width)
    hub = FakeHub(tmp_path)
    write_open_clip(hub.repository)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    assert read_language_config(f"mul_clip@v1+{xlmr_folder}").width == 1024 + 24
    assert hub.requests == [(registry.SHORT_NAMES["mul_clip"].repository, "v1")]


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"model_type": "clip", "text_config": {"model_type": "roberta"}}, "got roberta"),
        ({"model_type": "chinese_clip", "text_config": {"hidden_act": "relu"}}, "hidden_act"),
        (
            {"model_type": "vision-text-dual-encoder", "text_config": {"model_type": "gpt2"}},
            "model_type: expected 'bert' or .*got 'gpt2'",
        ),
        ({"model_type": "altclip", "text_config": {"project_dim": 0}}, "project_dim: expected"),
        ({"model_type": "mt5", "feed_forward_proj": "relu6"}, "T5 config: feed_forward_proj"),
        ({"transformer_width": 8}, "ruCLIP config: expected numbers vocab_size, "),
        ({}, "expected a model_type of bert, .*, got None"),
    ],
)
def test_a_config_that_is_not_supported_names_itself(tmp_path, config, problem):
    write_json(tmp_path / "config.json", config)
    with pytest.raises(WeightsError, match=problem) as raised:
        read_language_config(tmp_path)
    assert str(raised.value).startswith(str(tmp_path))


def test_a_registered_name_is_its_repository(tmp_path, monkeypatch):
    """mul_clip: no config there, so that its name alone says the width, before any weight comes."""
    hub = FakeHub(tmp_path)
    write_open_clip(hub.repository)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    repository = registry.SHORT_NAMES["mul_clip"].repository
    for name in ("mul_clip", repository):
        config = read_language_config(f"{name}@v1")
        assert (config.width, config.longest) == (1024, 512)
    assert set(hub.requests) == {(repository, "v1")}
    assert hub.fetched == {"tokenizer.json"}
    monkeypatch.setattr(builtin_configs, "CONFIGS", tmp_path)
    write_json(tmp_path / "xlm-roberta-large" / "config.json", XLMR)
    encoder = load_language_encoder("mul_clip@v1", max_length=9)
    assert set(hub.requests) == {(repository, "v1")}
    assert_same(encoder.tower, random_module(BUILDS["language"][0]))
    assert hub.fetched == {"tokenizer.json", "open_clip_model.safetensors"}


def test_a_folder_of_a_registered_name_is_written_with_a_dot(xlmr_folder, tmp_path, monkeypatch):
    shutil.copytree(xlmr_folder, tmp_path / "mt5")
    monkeypatch.chdir(tmp_path)
    assert read_language_config("./mt5").width == 24
    hub = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    with pytest.raises(AssertionError, match="patterns that match nothing"):
        read_language_config("mt5")
    assert hub.requests == [("google/mt5-xl", None)]


def test_the_registry_names_the_five_languages_of_the_paper():
    assert {"zh", "ja", "ko", "ru", "it"} < set(registry.SHORT_NAMES)
    assert {"mul_clip", "chinese_clip", "alt_clip", "alt_clip_m9", "mt5"} < set(
        registry.SHORT_NAMES
    )
    for name, one in registry.SHORT_NAMES.items():
        assert one.repository.count("/") == 1, name
        assert one.architecture is None or one.architecture in encoder_files.OPEN_CLIP_TEXT, name


def test_the_length_of_a_registered_encoder(tmp_path, monkeypatch):
    """clip-italian's tokenizer has none; 77 is the registry's."""
    hub = FakeHub(tmp_path)
    text = {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 2}
    values = {"model_type": "vision-text-dual-encoder", "text_config": text}
    write_json(hub.repository / "config.json", values)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    (part,) = read_language_config("it").parts
    assert (part.kind.length, part.config.hidden_size) == (77, 32)
    assert part.config.num_hidden_layers == 12  # what transformers leaves out is BERT base's
