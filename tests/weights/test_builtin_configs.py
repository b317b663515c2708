"""Models that are known without the Hub: those that the configs name, and only for their shapes."""

import logging
from pathlib import Path

import jax
import pytest

from pea_jax.cli import config as configs
from pea_jax.weights import builtin_configs, locate
from pea_jax.weights.bases import BaseSpec, load_base, read_base_config
from pea_jax.weights.errors import WeightsError
from pea_jax.weights.language import load_language_encoder, read_language_config

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))


@pytest.fixture(autouse=True)
def _warn_again():
    locate._builtin_folder.cache_clear()


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_config_can_be_compiled_without_the_hub(file):
    """The tests have no network (HF_HUB_OFFLINE)."""
    model = configs.load(file).model
    base = read_base_config(model.base, allow_builtin=True)
    language = read_language_config(model.language_encoder, allow_builtin=True)
    assert base.unet.cross_attention_dim
    assert language.width


@pytest.mark.parametrize("name", builtin_configs.ENCODERS)
def test_an_encoder_has_a_width(name):
    assert read_language_config(name, allow_builtin=True).width in (768, 1024, 2048)


@pytest.mark.parametrize("name", builtin_configs.BASES)
def test_a_base_has_parts_that_fit(name):
    assert len(read_base_config(name, allow_builtin=True).text_encoders) in (1, 2)


def test_an_abstract_model_is_shapes_and_lengths(caplog):
    name = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    with caplog.at_level(logging.WARNING):
        base = load_base(BaseSpec(name), abstract=True)
        load_base(BaseSpec(name), abstract=True)
    assert [record.getMessage() for record in caplog.records] == [
        f"{name}: the Hub cannot be reached; its config is this package's copy"
    ]
    leaves = jax.tree.leaves(base.unet)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert sum(leaf.size for leaf in leaves) == 859_520_964
    assert [part.shape for part in base.tokenizer(["a", "b"])] == [(2, 77)] * 2
    language = load_language_encoder("mul_clip+chinese_clip", abstract=True)
    assert language.tokenizer([""])[0].shape == (1, 77 + 52)
    assert language.width == 2048


def test_weights_are_never_taken_from_there():
    with pytest.raises(WeightsError, match="nor to be had from the Hugging Face Hub"):
        load_base(BaseSpec("segmind/SSD-1B"))


def test_they_do_not_stand_in_for_a_revision():
    with pytest.raises(WeightsError, match="segmind/SSD-1B@v1: neither a folder here"):
        read_base_config("segmind/SSD-1B@v1", allow_builtin=True)


def test_every_config_belongs_to_a_model():
    folders = {folder.name for folder in builtin_configs.CONFIGS.iterdir()}
    assert folders == {*builtin_configs.BASES.values(), *builtin_configs.ENCODERS.values()}


def test_a_model_that_is_neither_reached_nor_known_is_named():
    with pytest.raises(WeightsError, match="nobody/nothing: neither a folder here"):
        load_base(BaseSpec("nobody/nothing"), abstract=True)


def test_without_its_tokenizer_a_length_has_to_be_given():
    with pytest.raises(WeightsError, match="a max_length has to be given"):
        load_language_encoder("FacebookAI/xlm-roberta-large", abstract=True)
