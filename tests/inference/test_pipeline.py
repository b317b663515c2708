import dataclasses

import jax
import numpy as np
import pytest

from pea_jax.inference import program
from pea_jax.inference.pipeline import Pipeline
from pea_jax.inference.settings import Settings
from pea_jax.models import latents
from pea_jax.runtime import parallel
from pea_jax.runtime.compilations import Compilations
from pea_jax.weights.adapters import save_adapter
from tests import tiny, vivid

# Long, since padding looks alike whatever the prompt.
PROMPTS = ["红色的大圆形" * 6, "一个红的" * 9, "大" * 36, "圆形abc" * 7, "色的" * 18]
# The solver that draws noise at every step, from the sample's key. One program serves most tests.
SETTINGS = {"steps": 4, "guidance_scale": 5.0, "batch_size": 4, "solver": "euler_ancestral"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return vivid.write_models(tmp_path_factory.mktemp("models"))


def load(models, devices):
    mesh = parallel.make_mesh(devices=jax.devices()[:devices])
    return Pipeline.from_pretrained(
        models / "sd", models / "xlm-roberta", vivid.make_adapter(), mesh=mesh
    )


@pytest.fixture(scope="module")
def pipeline(models):
    return load(models, 1)


@pytest.fixture(scope="module")
def images(pipeline):
    return pipeline(PROMPTS, seed=7, **SETTINGS)


def difference(first, second):
    return np.abs(first.astype(int) - second.astype(int)).max(axis=(1, 2, 3))


def test_image_is_the_same_in_any_batch_and_on_any_number_of_devices(models, pipeline, images):
    alone = pipeline(PROMPTS, seed=7, **SETTINGS | {"batch_size": 1})
    spread = load(models, 8)(PROMPTS, seed=7, **SETTINGS)

    assert images.shape == alone.shape == spread.shape == (5, 16, 16, 3)
    assert difference(images, alone).max() <= 1
    assert difference(images, spread).max() <= 1
    # The comparison means something: the images differ, and aren't flat.
    assert difference(images[1:], images[:-1]).min() > 30
    assert images.std(axis=(1, 2)).min() > 10


def test_a_device_decodes_its_images_a_few_at_a_time(models, images, monkeypatch):
    """Two devices of two rows, decoded one by one: the same images in the same places."""
    monkeypatch.setattr(latents, "_PIXELS_AT_ONCE", 16 * 16)
    pipeline = load(models, 2)
    assert difference(pipeline(PROMPTS, seed=7, **SETTINGS), images).max() <= 1
    loops = [
        pipeline.lower(Settings(batch_size=rows), rows).as_text().count("stablehlo.while")
        for rows in (2, 4)
    ]
    assert loops[1] == loops[0] + 1


def test_image_goes_with_its_prompt_and_seed(pipeline, images):
    order = [3, 0, 4, 2, 1]
    shuffled = pipeline([PROMPTS[i] for i in order], seed=[7 + i for i in order], **SETTINGS)
    assert difference(shuffled, images[order]).max() <= 1

    # Same noise, so that the prompt alone makes the difference, then the seed alone.
    prompts = pipeline(PROMPTS, seed=[7] * 5, **SETTINGS)
    assert difference(prompts[1:], prompts[:1].repeat(4, 0)).min() > 8
    seeds = pipeline([PROMPTS[0]] * 5, seed=7, **SETTINGS)
    assert difference(seeds[1:], seeds[:1].repeat(4, 0)).min() > 30


def test_adapters_steps_and_strengths_share_one_program(pipeline, images):
    compiled = program.sample_images._cache_size()
    other = pipeline.with_adapter(vivid.make_adapter(seed=1))(PROMPTS, seed=7, **SETTINGS)
    more = pipeline(PROMPTS, seed=7, **SETTINGS | {"steps": 7})
    stronger = pipeline(PROMPTS, seed=7, **SETTINGS | {"guidance_scale": 9.0})
    rescaled = pipeline(PROMPTS, seed=7, guidance_rescale=0.7, **SETTINGS)

    assert program.sample_images._cache_size() == compiled
    for changed in (other, more, stronger):
        assert difference(changed, images).min() > 8
    assert difference(rescaled, images).max() > 3


def test_another_batch_size_or_guidance_compiles_once(pipeline, images):
    """And going back to what was compiled before compiles nothing."""
    changes = [
        {},
        {"guidance_scale": 1.0},
        {"height": 24, "width": 16},
        {"height": 16, "width": 24},
        {"batch_size": 8},
        {"batch_size": 16},
    ]
    prompts = PROMPTS * 3

    def draw(change):
        pipeline(prompts, seed=7, **SETTINGS | change)

    for change in changes:
        draw(change)
    compiled, programs = Compilations(), program.sample_images._cache_size()
    for change in (*changes, *reversed(changes)):
        draw(change)
    assert program.sample_images._cache_size() == programs
    assert compiled.count == 0


def test_latents_take_the_place_of_the_seeds_noise(pipeline, images):
    seeds = np.arange(7, 12, dtype=np.uint32)
    noise = np.asarray(program.initial_noise(seeds, pipeline.latent_shape()))
    again = pipeline(PROMPTS, latents=noise, seed=7, **SETTINGS)
    assert difference(again, images).max() == 0

    other = pipeline(PROMPTS, latents=noise[::-1], seed=7, **SETTINGS)
    assert difference(other, images)[[0, 1, 3, 4]].min() > 30


def test_guidance_off_and_guidance_that_leads_nowhere(pipeline, images):
    plain = pipeline(PROMPTS, seed=7, **SETTINGS | {"guidance_scale": 1.0})
    ignored = pipeline(PROMPTS, seed=7, negative_prompt="红", **SETTINGS | {"guidance_scale": 0.5})
    assert difference(plain, ignored).max() == 0
    # The prompt as its own negative: u + s (c - u) = c, if both go the same way.
    nowhere = pipeline(PROMPTS, seed=7, negative_prompt=PROMPTS, **SETTINGS)
    assert difference(plain, nowhere).max() <= 1
    assert difference(plain, images).min() > 3
    # One negative prompt for all is that one for each, and isn't "".
    red = pipeline(PROMPTS, seed=7, negative_prompt="红", **SETTINGS)
    reds = pipeline(PROMPTS, seed=7, negative_prompt=["红"] * 5, **SETTINGS)
    assert difference(red, reds).max() == 0
    assert difference(red, images).min() > 3


def test_sizes(pipeline):
    assert pipeline.latent_shape() == (8, 8, 4)
    assert pipeline.latent_shape(24, 10) == (12, 5, 4)
    with pytest.raises(
        ValueError, match=r"height.* 2,.* 17; nearest: 16 and 18.*width.*nearest: 2"
    ):
        pipeline.latent_shape(17, 1)
    with pytest.raises(ValueError, match="nearest: 16 and 18"):
        pipeline(PROMPTS, height=17, **SETTINGS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, r"one or more prompts, got \[\]"),
        ({"prompts": "红"}, "list of one or more prompts, got '红'"),
        ({"seed": [1, 2]}, r"one a prompt \(5\), got 2"),
        ({"seed": -1}, "from 0 to 4294967295"),
        ({"seed": 2**32 - 3}, "from 0 to 4294967295"),
        ({"negative_prompt": ["a"]}, r"one a prompt \(5\), got 1"),
        ({"latents": np.zeros((5, 4, 8, 8), np.float32)}, r"\(5, 8, 8, 4\), got \(5, 4, 8, 8\)"),
        ({"batch_size": 0}, "1 or more, got 0"),
        ({"solver": "dpm"}, "unknown solver 'dpm'"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_bad_arguments_are_refused(pipeline, arguments, message):
    arguments = {"prompts": PROMPTS} | SETTINGS | arguments
    with pytest.raises(ValueError, match=message):
        pipeline(**arguments)


def test_unknown_setting_is_refused(pipeline):
    with pytest.raises(TypeError, match="guidance"):
        pipeline(PROMPTS, guidance=3.0)


def test_language_and_adapter_come_together_and_fit(pipeline):
    with pytest.raises(ValueError, match="only a language encoder"):
        dataclasses.replace(pipeline, adapter=None)
    with pytest.raises(ValueError, match="only an adapter"):
        dataclasses.replace(pipeline, language=None)
    with pytest.raises(ValueError, match=r"output_width: expected 16 .*, got 12"):
        pipeline.with_adapter(vivid.make_adapter(output_width=12))


def test_adapter_folder_brings_its_language_encoder(models, tmp_path):
    metadata = {
        "base_model": "x",
        "language_encoder": str(models / "xlm-roberta"),
        "language_max_length": 17,
    }
    save_adapter(tmp_path, vivid.make_adapter(), metadata=metadata)
    pipeline = Pipeline.from_pretrained(models / "sd", adapter=tmp_path)
    assert pipeline.language.width == tiny.XLMR["hidden_size"]
    assert pipeline.tokenizer.max_length == 17
    english = pipeline.english()
    assert english.adapter is None
    assert english.tokenizer.max_length == tiny.ENGLISH_TOKENS


def test_a_bare_adapter_file_takes_a_language(models, tmp_path):
    """As the authors' are: nothing in it says what it was trained with."""
    save_adapter(
        tmp_path, vivid.make_adapter(), metadata={"base_model": "", "language_encoder": ""}
    )
    file = (tmp_path / "adapter.safetensors").rename(tmp_path / "pytorch_model.safetensors")
    with pytest.raises(ValueError, match=r"names no language encoder: language= has to be given$"):
        Pipeline.from_pretrained(models / "sd", adapter=file)
    pipeline = Pipeline.from_pretrained(models / "sd", models / "xlm-roberta", file, max_length=17)
    assert pipeline.tokenizer.max_length == 17
    np.testing.assert_array_equal(
        pipeline.adapter.layernorm.bias[...], vivid.make_adapter().layernorm.bias[...]
    )
