"""An exported folder in PyTorch diffusers gives the images that we give."""

import dataclasses
import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.schedulers import scheduling_euler_ancestral_discrete as ancestral

from pea_jax.assembly import model_factory
from pea_jax.diffusion import solvers
from pea_jax.diffusion.schedule import Schedule
from pea_jax.inference import program
from pea_jax.inference.pipeline import Pipeline
from pea_jax.runtime import parallel
from pea_jax.tasks import export
from tests import tiny, vivid

# Long, since padding looks alike whatever the prompt.
PROMPTS = ["红色的大圆形" * 6, "abc一个" * 5]
NEGATIVE = "大" * 30
SEEDS = [3, 4]
#: Not square, so that height and width can't change places.
SIZE = {"height": 24, "width": 16}

SOLVERS = [
    ("ddim", {"set_alpha_to_one": False}),
    ("euler", {}),
    ("euler_ancestral", {}),
    ("dpmpp_2m", {}),
    ("dpmpp_2m", {"prediction_type": "v_prediction", "timestep_spacing": "leading"}),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return vivid.write_models(tmp_path_factory.mktemp("models"))


def load_ours(models, adapter, language=None):
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    language = language or models / "xlm-roberta"
    return Pipeline.from_pretrained(models / "sd", language, adapter, mesh=mesh)


@pytest.fixture(scope="module")
def ours(models):
    return load_ours(models, vivid.make_adapter())


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    return export_folder(models, vivid.make_adapter(), tmp_path_factory.mktemp("run"))


def export_folder(models, adapter, workdir, language=None):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            model_factory, "load_trained_adapter", lambda workdir, step=None: (adapter, 1)
        )
        config = tiny.config(models, workdir, sample__solver="dpmpp_2m")
        if language is not None:
            config.model.language_encoder = language
        return export.export(config, workdir, output=workdir / "out") / "diffusers"


def load(folder, **arguments):
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        folder, trust_remote_code=True, **arguments
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def theirs(folder):
    return load(folder, custom_pipeline="pipeline")


def latents(ours, size=SIZE):
    return np.array(
        program.initial_noise(np.array(SEEDS, np.uint32), ours.latent_shape(*size.values()))
    )


def draw(theirs, ours, prompts=PROMPTS, **arguments):
    """uint8 images of the PyTorch pipeline from the noise that ours starts from."""
    arguments = {"negative_prompt": [NEGATIVE] * 2, "guidance_scale": 5.0, **SIZE} | arguments
    noise = torch.from_numpy(np.moveaxis(latents(ours), -1, 1).copy())
    images = theirs(prompts, latents=noise, output_type="np", **arguments).images
    return np.round(images * 255).astype(int)


def our_noise():
    """In place of diffusers' `randn_tensor`: what our solver draws at step 0, 1, ..."""
    steps = itertools.count()

    def draw(shape, **_):
        keys = jax.vmap(jax.random.fold_in, (0, None))(
            program.keys(jnp.array(SEEDS, jnp.uint32), 1), next(steps)
        )
        noise = solvers.gaussian(keys, (*shape[2:], shape[1]))
        return torch.from_numpy(np.moveaxis(np.array(noise), -1, 1).copy())

    return draw


@pytest.mark.parametrize(("solver", "changes"), SOLVERS)
def test_images_are_equal(ours, theirs, solver, changes, monkeypatch):
    schedule = ours.base.config.schedule | changes
    config = dataclasses.replace(ours.base.config, schedule=schedule)
    ours = dataclasses.replace(ours, base=dataclasses.replace(ours.base, config=config))
    written = solvers.scheduler_config(solver, Schedule.from_dict(schedule))
    scheduler = getattr(diffusers, written["_class_name"]).from_config(written)
    monkeypatch.setattr(theirs, "scheduler", scheduler)
    monkeypatch.setattr(ancestral, "randn_tensor", our_noise())

    expected = draw(theirs, ours, num_inference_steps=5)
    images = ours(
        PROMPTS,
        seed=SEEDS,
        steps=5,
        guidance_scale=5.0,
        negative_prompt=NEGATIVE,
        solver=solver,
        **SIZE,
    )
    assert np.abs(images - expected).max() <= 2
    # Flat images would be no evidence, nor would images that no prompt moves.
    assert images.std(axis=(1, 2)).min() > 10
    others = draw(theirs, ours, PROMPTS[::-1], num_inference_steps=5)
    assert np.abs(images - others).max() > 8


def test_folder_loads_by_every_name_and_only_with_trust(folder, theirs, ours):
    assert type(theirs.scheduler).__name__ == "DPMSolverMultistepScheduler"
    expected = draw(theirs, ours, num_inference_steps=2)
    for arguments in ({"custom_pipeline": str(folder)}, {}):
        again = load(folder, **arguments)
        assert type(again).__name__ == "PEAPipeline"
        assert np.array_equal(draw(again, ours, num_inference_steps=2), expected)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        diffusers.DiffusionPipeline.from_pretrained(folder)


def test_saved_again_it_is_the_same(theirs, ours, tmp_path):
    expected = draw(theirs, ours, num_inference_steps=2)
    theirs.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again", custom_pipeline="pipeline")
    assert np.array_equal(draw(again, ours, num_inference_steps=2), expected)


def test_prompts_go_where_stable_diffusion_takes_them(theirs, ours, caplog):
    # Several images a prompt, and embeddings in place of prompts.
    embeddings, negatives = theirs.encode_prompt(PROMPTS, "cpu", 1, True, [NEGATIVE, "红"])
    assert embeddings.shape == negatives.shape == (2, 40, 16)
    twice, _ = theirs.encode_prompt(PROMPTS[0], "cpu", 2, False)
    assert torch.equal(twice, embeddings[:1].expand(2, -1, -1))
    with torch.no_grad():
        given = draw(
            theirs,
            ours,
            None,
            prompt_embeds=embeddings,
            negative_prompt_embeds=negatives,
            negative_prompt=None,
            num_inference_steps=2,
        )
    said = draw(theirs, ours, negative_prompt=[NEGATIVE, "红"], num_inference_steps=2)
    assert np.array_equal(given, said)

    with pytest.raises(ValueError, match="expected one negative prompt or 2"):
        theirs.encode_prompt(PROMPTS, "cpu", 1, True, [NEGATIVE])
    with pytest.raises(ValueError, match="clip_skip"):
        theirs.encode_prompt(PROMPTS, "cpu", 1, True, clip_skip=1)
    diffusers.utils.logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        theirs.encode_prompt("红" * 37 + "大圆", "cpu", 1, False)
    assert "a prompt of 42 tokens, 40 fit, cut off: '大圆'" in caplog.text


def test_three_joined_encoders_give_the_same_images(models, tmp_path):
    """One encoder three times: its states lie side by side three times on the feature axis."""
    adapter = vivid.make_adapter(encoders=3)
    joined = "+".join([str(models / "xlm-roberta")] * 3)
    theirs = load(export_folder(models, adapter, tmp_path, joined), custom_pipeline="pipeline")
    assert theirs.language_encoder_3 is not theirs.language_encoder
    ours = load_ours(models, adapter, joined)
    expected = draw(theirs, ours, num_inference_steps=2)
    settings = {"steps": 2, "guidance_scale": 5.0, "negative_prompt": NEGATIVE, **SIZE}
    images = ours(PROMPTS, seed=SEEDS, **settings)
    assert np.abs(images - expected).max() <= 2
    assert np.abs(images - draw(theirs, ours, PROMPTS[::-1], num_inference_steps=2)).max() > 8


def test_english_model_is_still_there(theirs, ours):
    # `from_pipe` shares the components, so it comes last.
    english = diffusers.StableDiffusionPipeline.from_pipe(theirs)
    english.set_progress_bar_config(disable=True)
    prompts = ["a red circle", "abc"]
    expected = draw(english, ours, prompts, negative_prompt=["", ""], num_inference_steps=5)
    images = ours.english()(prompts, seed=SEEDS, steps=5, guidance_scale=5.0, **SIZE)
    assert np.abs(images - expected).max() <= 2
