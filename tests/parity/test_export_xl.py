"""An exported SDXL folder in PyTorch diffusers: as test_export, with pooled vector and time ids."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from tests import vivid
from tests.parity.test_export import (
    NEGATIVE,
    PROMPTS,
    SEEDS,
    SIZE,
    draw,
    export_folder,
    load,
    load_ours,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return vivid.write_models(tmp_path_factory.mktemp("models"), xl=True)


@pytest.fixture(scope="module")
def adapter():
    return vivid.make_adapter(output_width=24, pooled_width=10)


@pytest.fixture(scope="module")
def ours(models, adapter):
    return load_ours(models, adapter)


@pytest.fixture(scope="module")
def folder(models, adapter, tmp_path_factory):
    return export_folder(models, adapter, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def theirs(folder):
    return load(folder, custom_pipeline="pipeline")


def test_images_are_equal(ours, theirs):
    expected = draw(theirs, ours, num_inference_steps=5)
    settings = {"steps": 5, "guidance_scale": 5.0, "negative_prompt": NEGATIVE, **SIZE}
    images = ours(PROMPTS, seed=SEEDS, **settings)
    assert np.abs(images - expected).max() <= 2
    assert images.std(axis=(1, 2)).min() > 10
    others = draw(theirs, ours, PROMPTS[::-1], num_inference_steps=5)
    assert np.abs(images - others).max() > 8


def test_saved_again_it_is_the_same(theirs, ours, tmp_path):
    """Though another family was loaded in between: diffusers keeps the code of both in one file."""
    expected = draw(theirs, ours, num_inference_steps=2)
    other = vivid.write_models(tmp_path / "models")
    load(export_folder(other, vivid.make_adapter(), tmp_path / "run"), custom_pipeline="pipeline")
    theirs.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again", custom_pipeline="pipeline")
    assert type(again).__name__ == "PEAPipeline"
    assert np.array_equal(draw(again, ours, num_inference_steps=2), expected)


def test_base_pipeline_takes_our_tokens_and_pooled(theirs, ours):
    """What other pipelines of the family (ControlNet, inpainting, ...) are given."""
    names = ("", "negative_", "pooled_", "negative_pooled_")
    with torch.no_grad():
        encoded = theirs.encode_prompt(PROMPTS, negative_prompt=NEGATIVE, device="cpu")
    assert [tuple(each.shape) for each in encoded] == [(2, 40, 24)] * 2 + [(2, 10)] * 2
    english = diffusers.StableDiffusionXLPipeline(
        **{
            name: part
            for name, part in theirs.components.items()
            if "language" not in name and name != "adapter"
        }
    )
    english.set_progress_bar_config(disable=True)
    given = {f"{name}prompt_embeds": each for name, each in zip(names, encoded, strict=True)}
    images = draw(english, ours, None, negative_prompt=None, num_inference_steps=2, **given)
    assert np.array_equal(images, draw(theirs, ours, num_inference_steps=2))
    # The English model itself: both towers, and zeros for a negative prompt that is none.
    prompts = ["a red circle", "abc"]
    expected = draw(english, ours, prompts, negative_prompt=None, num_inference_steps=5)
    images = ours.english()(prompts, seed=SEEDS, steps=5, guidance_scale=5.0, **SIZE)
    assert np.abs(images - expected).max() <= 2
    negatives = ["cab", "abcabc"]
    expected = draw(english, ours, prompts, negative_prompt=negatives, num_inference_steps=5)
    settings = {"steps": 5, "guidance_scale": 5.0, "negative_prompt": negatives, **SIZE}
    images = ours.english()(prompts, seed=SEEDS, **settings)
    assert np.abs(images - expected).max() <= 2


def test_arguments_of_the_english_text_encoders_are_refused(theirs):
    with pytest.raises(ValueError, match="prompt_2, clip_skip: of the English"):
        theirs.encode_prompt(PROMPTS, prompt_2=PROMPTS, clip_skip=1)
