import collections
import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from pea_jax.assembly import model_factory
from pea_jax.inference.pipeline import Pipeline
from pea_jax.tasks import evaluate
from pea_jax.tinyworld import captions, splits
from pea_jax.tinyworld.world import Scene, render
from tests import tiny, vivid

#: What each caption says, and in which language; none is of two.
SCENES = {
    captions.caption(scene, language, template): (scene, language)
    for native in (False, True)
    for scene in splits.scenes("test", native)
    for language in captions.LANGUAGES
    for template in range(4)
}


#: A quarter of the scenes is in fog, where the draughtsman gets every size wrong.
GOOD = {"all": 0.75, "shape": 1.0, "colour": 1.0, "size": 0.75, "background": 1.0}


class Draughtsman(Pipeline):
    """Draws the prompted scene, in the languages that it knows, without a network."""

    def __init__(self, *knows):
        object.__setattr__(self, "knows", knows)
        object.__setattr__(self, "languages", [])

    def english(self):
        return Draughtsman("en")

    def with_adapter(self, adapter):
        return Draughtsman()

    def batches(self, prompts, settings, *, seed):
        assert len(seed) == len(prompts)
        assert (settings.height, settings.width) == (64, 64)
        images = np.stack([self._draw(prompt) for prompt in prompts])
        yield from np.array_split(images, 3)

    def _draw(self, prompt):
        scene, language = SCENES.get(prompt, (None, None))
        self.languages.append(language)
        if language not in self.knows:
            return np.full((64, 64, 3), 90, np.uint8)
        if scene.background == "fog":
            scene = dataclasses.replace(scene, size="small" if scene.size == "large" else "large")
        return render(scene)


@pytest.fixture
def config(tmp_path):
    return tiny.config(tmp_path, tmp_path, data__dataset="tinyworld", data__image_size=64)


@pytest.fixture
def drawn(monkeypatch):
    monkeypatch.setattr(
        model_factory, "load_trained_adapter", lambda workdir, step=None: (vivid.make_adapter(), 7)
    )
    monkeypatch.setattr(model_factory, "load_pipeline", lambda config, adapter: Draughtsman("zh"))


def test_scores_go_to_the_right_model_and_set(config, drawn, tmp_path, capsys):
    results = evaluate.evaluate(config, tmp_path)
    assert results == json.loads((tmp_path / "eval.json").read_text())

    for name in ("general", "native"):
        assert results[name]["en"]["teacher"] == results[name]["zh"]["student"] == GOOD
        assert results[name]["zh"]["untrained"]["all"] == 0
        assert list(results[name]) == ["en", "zh"]
    assert results["native"]["en"]["translation"]["all"] == 0
    assert "translation" not in results["general"]["en"]
    assert results["counts"] == {"general": 64, "native": 48}
    assert results["settings"]["step"] == 7
    assert results["settings"]["languages"] == ["zh"]

    output = capsys.readouterr().out
    assert "0.75" in output
    assert "by construction" in " ".join(output.split())
    # Eight figures and six motifs in rows; four models in columns.
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.height > 14 * 128


def test_each_language_is_scored_for_itself(config, drawn, monkeypatch, tmp_path):
    """Those of the run, unless others are named; English is drawn once, not once per language."""
    student, english = Draughtsman("zh", "it"), Draughtsman("en")
    monkeypatch.setattr(model_factory, "load_pipeline", lambda config, adapter: student)
    monkeypatch.setattr(Draughtsman, "english", lambda self: english)
    config.evaluate.prompts = 8
    config.data.languages = ("ko", "zh", "it")
    results = evaluate.evaluate(config, tmp_path)
    for name in ("general", "native"):
        assert list(results[name]) == ["en", "ko", "zh", "it"]
        teacher = results[name]["en"]["teacher"]
        assert teacher["all"] > 0
        assert results[name]["zh"] == results[name]["it"] == {"student": teacher}
        # A random adapter draws one language: it knows none.
        assert [results[name]["ko"][model]["all"] for model in ("untrained", "student")] == [0, 0]
    assert collections.Counter(student.languages) == {"ko": 16, "zh": 16, "it": 16}
    # And what a dictionary makes of the eight native prompts' Chinese.
    assert collections.Counter(english.languages) == {"en": 16, None: 8}
    with Image.open(tmp_path / "grid.png") as picture:
        # English, the untrained adapter, three languages and the translation, beside the captions.
        assert picture.width > 6 * 128

    config.evaluate.languages = ("it", "ja")
    results = evaluate.evaluate(config, tmp_path / "again")
    assert list(results["general"]) == ["en", "it", "ja"]
    assert "translation" not in results["native"]["en"]
    assert results["settings"]["languages"] == ["it", "ja"]


def test_prompts_are_held_out_scenes_with_their_captions(config):
    config.evaluate.images_per_prompt = 2
    config.evaluate.prompts = 12
    config.evaluate.languages = ("ru", "zh")
    general = evaluate.prompt_set(config, native=False)
    native = evaluate.prompt_set(config, native=True)
    for prompts, is_native in ((general, False), (native, True)):
        assert len(prompts.scenes) == len(prompts.seeds) == len(set(prompts.seeds)) == 24
        assert set(prompts.scenes) <= set(splits.scenes("test", is_native))
        assert len(set(prompts.scenes)) == 12
        for index, scene in enumerate(prompts.scenes):
            assert SCENES[prompts.texts["student", "zh"][index]] == (scene, "zh")
            assert SCENES[prompts.texts["student", "ru"][index]] == (scene, "ru")
            assert SCENES[prompts.texts["teacher", "en"][index]] == (scene, "en")
        assert prompts.texts["untrained", "ru"] == prompts.texts["student", "ru"]
        assert len({scene.shape for scene in prompts.scenes}) >= 6
    # Word for word is only known from Chinese.
    assert ("translation", "en") not in general.texts
    assert native.texts["translation", "en"][0] == captions.literal(native.scenes[0], 0)
    config.evaluate.languages = ("ru",)
    assert ("translation", "en") not in evaluate.prompt_set(config, native=True).texts


@pytest.mark.parametrize("native", [False, True])
def test_grid_shows_every_figure_once_and_all_there_is(native):
    scenes = splits.scenes("test", native)
    chosen = [scenes[i] for i in evaluate._one_per_shape(scenes)]
    shapes = {scene.shape for scene in scenes}
    assert len(chosen) == len(shapes)
    assert {scene.shape for scene in chosen} == shapes
    assert len({scene.colour for scene in chosen}) == len(chosen)
    assert len({scene.background for scene in chosen}) == 4
    assert len({scene.size for scene in chosen}) == 2


def test_grid_takes_what_there_is():
    one = Scene("ring", "red", "small", "snow")
    assert evaluate._one_per_shape([one, one]) == [0]


def test_table_holds_every_model(config):
    shares = dict.fromkeys(("all", "shape", "colour", "size", "background"), 0.125)
    results = {
        "general": {"en": {"teacher": shares}, "ru": {"student": shares}},
        "native": {"en": {"translation": shares}},
        "counts": {"general": 64, "native": 48},
        "about": "What it means.",
    }
    screen = io.StringIO()
    evaluate.show(results, Console(file=screen, width=80))
    rows = [line.replace("│", " ").split() for line in screen.getvalue().splitlines()]
    for label in (
        "general (64) teacher en",
        "general (64) student ru",
        "native (48) translation en",
    ):
        assert [*label.split(), *["0.12"] * 5] in rows
    assert "What it means" in screen.getvalue()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.dataset": "laion"}, "data.dataset: expected tinyworld, got laion"),
        ({"data.languages": ("fr",)}, "data.languages: expected some of en, zh, .*, got fr"),
        (
            {"evaluate.languages": ("zh", "fr", "de")},
            "evaluate.languages: expected some of en, zh, .*, got fr, de",
        ),
        ({"sample.height": 32}, "sample.height and width: expected 64, got 32 and 64"),
        ({"evaluate.images_per_prompt": 0}, "images_per_prompt: expected 1 or more, got 0"),
    ],
)
def test_what_the_oracle_cannot_read_is_refused(config, drawn, tmp_path, changes, message):
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        evaluate.evaluate(config, tmp_path / "run", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
