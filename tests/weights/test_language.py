"""A language encoder from a transformers folder."""

import json
import shutil

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pea_jax import parallel
from pea_jax.models.clip import CLIPText
from pea_jax.weights.language import load_language_encoder, read_language_config
from pea_jax.weights.load import WeightsError
from tests.models.random_module import random_module
from tests.weights.conftest import BUILDS, english_tokenizer, write_part
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
    assert encoder.folders == (xlmr_folder,)
    ids, mask = encoder.tokenizer(["一个红色的大圆形", ""])
    assert ids.shape == (2, 16)  # the tokenizer's own length
    tokens = jax.eval_shape(encoder.tower, ids, mask).tokens
    assert tokens.shape == (2, 16, encoder.width)


def test_the_length_that_is_asked_for(xlmr_folder):
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
