"""`pea-jax evaluate`: how well a trained adapter draws tinyworld's held-out scenes.

    OUTPUT/eval.json   the share of images in which the oracle reads what was asked for
    OUTPUT/grid.png    some prompts in rows, what each model makes of them in columns

Two sets of prompts, `general` (figures that every language has a word for) and `native` (motifs
that a word-for-word translation misses), the same scenes in every language, and four models:

    teacher      the base model, given the captions in English
    translation  the base model, given the Chinese names of motifs word for word in English, where
                 Chinese is one of the languages
    untrained    language encoder and a random adapter, given the captions in the first language
    student      language encoder and the trained adapter, given them in each language
"""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
from flax import nnx
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image
from rich.console import Console
from rich.table import Table

from pea_jax.assembly import model_factory
from pea_jax.evals import grid, scores
from pea_jax.inference.pipeline import Pipeline
from pea_jax.inference.settings import Settings
from pea_jax.models.adapter import Adapter
from pea_jax.runtime import parallel, storage
from pea_jax.runtime.progress import progress
from pea_jax.runtime.storage import AnyPath
from pea_jax.tinyworld import captions, splits, world
from pea_jax.tinyworld.world import Scene

EVAL_FILE = "eval.json"
GRID_FILE = "grid.png"

#: What the numbers mean; printed with the table and written beside them.
ABOUT = (
    "Share of images in which the oracle reads what was asked for, over held-out scenes. "
    "Teacher: the English model, given English. Untrained and student: the adapter before and "
    "after training, given the language of the row. Translation: the English model, given the "
    'motif\'s Chinese name word for word ("bear cat" for a panda). That this baseline fails is by '
    "construction, the failure that the paper describes: the English side calls the motif "
    "something else."
)

#: A model, and the language of what it is given.
Column = tuple[str, str]
#: By the name of a set of prompts and the column.
Images = dict[tuple[str, Column], UInt8[np.ndarray, "N H W 3"]]


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """Scenes of one set and what is said of them, one entry an image.

    Attributes:
      scenes: what each image should show.
      texts: by column, the prompts; a model that isn't in it is not asked for these scenes.
      seeds: of each image, the same for all columns.
    """

    scenes: tuple[Scene, ...]
    texts: dict[Column, list[str]]
    seeds: list[int]


def evaluate(
    config: ConfigDict, workdir: AnyPath, *, output: AnyPath | None = None, step: int | None = None
) -> dict:
    """Scores a run, writes eval.json and grid.png, and prints a table.

    Args:
      config: of the run; `evaluate` says how many images, `sample` how to sample them.
      workdir: of the run.
      output: a folder, made where it is missing; None is the workdir. An evaluation that is there
        is replaced.
      step: of the checkpoint; None takes the latest.

    Returns:
      What eval.json holds.

    Raises:
      ValueError: the run isn't of tinyworld, or its images aren't of tinyworld's size.
      FileNotFoundError: the workdir has no checkpoint of this step.
    """
    settings = model_factory.sample_settings(config)
    _check(config, settings)
    output = workdir if output is None else output
    adapter, step = model_factory.load_trained_adapter(workdir, step=step)
    student = model_factory.load_pipeline(config, adapter)
    untrained = Adapter(adapter.config, rngs=nnx.Rngs(config.seed))
    models = {
        "teacher": student.english(),
        "translation": student.english(),
        "untrained": student.with_adapter(untrained),
        "student": student,
    }
    sets = {name: prompt_set(config, native=name == "native") for name in ("general", "native")}
    images: Images = {}
    for model, pipeline in models.items():
        images |= _sample(model, pipeline, sets, settings)
    results = {name: {} for name in sets}
    for (name, (model, language)), made in images.items():
        shares = scores.scene_accuracy(made, sets[name].scenes)
        results[name].setdefault(language, {})[model] = shares
    results |= {
        "counts": {name: len(asked.scenes) for name, asked in sets.items()},
        "about": ABOUT,
        "settings": {
            **dataclasses.asdict(settings),
            **config.evaluate.to_dict(),
            "base": config.model.base,
            "language_encoder": config.model.language_encoder,
            "languages": list(_languages(config)),
            "step": step,
        },
    }
    if parallel.process_index() == 0:
        output.mkdir(parents=True, exist_ok=True)
        text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
        storage.replace_text(output / EVAL_FILE, text)
        picture = draw(sets, images)
        storage.replace_bytes(output / GRID_FILE, grid.png(picture))
        show(results, Console())
        print(f"{output / EVAL_FILE}\n{output / GRID_FILE}")
    return results


def prompt_set(config: ConfigDict, *, native: bool) -> PromptSet:
    """The held-out scenes of one set, each `evaluate.images_per_prompt` times.

    Templates of captions take turns, so all are asked for.
    """
    given, languages = config.evaluate, _languages(config)
    scenes = splits.scenes("test", native)
    chosen = _spread(scenes, given.prompts or len(scenes))
    rows = [(i, s) for i, s in enumerate(chosen) for _ in range(given.images_per_prompt)]
    told = {
        language: [captions.caption(scene, language, i) for i, scene in rows]
        for language in dict.fromkeys(("en", *languages))
    }
    texts = {("teacher", "en"): told["en"], ("untrained", languages[0]): told[languages[0]]}
    texts |= {("student", language): told[language] for language in languages}
    if native and "zh" in languages:
        texts["translation", "en"] = [captions.literal(scene, i) for i, scene in rows]
    seeds = [given.seed + i for i in range(len(rows))]
    return PromptSet(tuple(scene for _, scene in rows), texts, seeds)


def draw(sets: dict[str, PromptSet], images: Images) -> Image.Image:
    """One row a figure: what was said of it on the left, what came of it in each column."""
    columns = list(dict.fromkeys(column for asked in sets.values() for column in asked.texts))
    rows, told = [], []
    for name, asked in sets.items():
        for index in _one_a_shape(asked.scenes):
            cells = [images.get((name, column)) for column in columns]
            rows.append([None if cell is None else cell[index] for cell in cells])
            said = {column: texts[index] for column, texts in asked.texts.items()}
            lines = [text for (model, _), text in said.items() if model == "student"]
            lines.append(said["teacher", "en"])
            if ("translation", "en") in said:
                lines.append(f"translation: {said['translation', 'en']}")
            told.append(lines)
    return grid.table(rows, headers=[" ".join(column) for column in columns], captions=told)


def show(results: dict, console: Console) -> None:
    """Prints the scores as a table, and what they mean."""
    table = Table(title="tinyworld, held-out scenes", caption=results["about"])
    attributes = ("all", *scores.ATTRIBUTES)
    for header in ("prompts", "model", *attributes):
        table.add_column(header, justify="right" if header in attributes else "left")
    for name, count in results["counts"].items():
        for language, models in results[name].items():
            for model, shares in models.items():
                cells = [f"{shares[attribute]:.2f}" for attribute in attributes]
                table.add_row(f"{name} ({count})", f"{model} {language}", *cells)
        table.add_section()
    console.print(table)


def _languages(config: ConfigDict) -> tuple[str, ...]:
    return config.evaluate.languages or config.data.languages


def _check(config: ConfigDict, settings: Settings) -> None:
    problems = []
    if config.data.dataset != "tinyworld":
        problems.append(f"data.dataset: expected tinyworld, got {config.data.dataset}")
    unknown = [name for name in _languages(config) if name not in captions.LANGUAGES]
    if unknown:
        field = "evaluate.languages" if config.evaluate.languages else "data.languages"
        expected = ", ".join(captions.LANGUAGES)
        problems.append(f"{field}: expected some of {expected}, got {', '.join(unknown)}")
    if (settings.height, settings.width) != (world.IMAGE_SIZE, world.IMAGE_SIZE):
        problems.append(
            f"sample.height and width: expected {world.IMAGE_SIZE}, "
            f"got {settings.height} and {settings.width}"
        )
    if config.evaluate.images_per_prompt < 1:
        problems.append(
            "evaluate.images_per_prompt: expected 1 or more, "
            f"got {config.evaluate.images_per_prompt}"
        )
    if problems:
        raise ValueError(f"evaluate reads tinyworld's images alone: {'; '.join(problems)}")


def _sample(
    model: str, pipeline: Pipeline, sets: dict[str, PromptSet], settings: Settings
) -> Images:
    """What a model makes of each set and language that it is asked for, in one go over all."""
    asked = {
        (name, column): (texts, one.seeds)
        for name, one in sets.items()
        for column, texts in one.texts.items()
        if column[0] == model
    }
    if not asked:
        return {}
    prompts = [text for texts, _ in asked.values() for text in texts]
    seeds = [seed for _, numbers in asked.values() for seed in numbers]
    batches = pipeline.batches(prompts, settings, seed=seeds)
    images = np.concatenate(list(progress(batches, len(prompts), model)))
    ends = np.cumsum([len(texts) for texts, _ in asked.values()])
    return dict(zip(asked, np.split(images, ends[:-1]), strict=True))


def _spread(scenes: Sequence[Scene], count: int) -> list[Scene]:
    """`count` scenes at even distances."""
    count = min(count, len(scenes))
    return [scenes[i * len(scenes) // count] for i in range(count)]


def _one_a_shape(scenes: Sequence[Scene]) -> list[int]:
    """The index of one scene of every shape, in turn another of those that show it."""
    indices = []
    for turn, shape in enumerate(dict.fromkeys(scene.shape for scene in scenes)):
        having = [i for i, scene in enumerate(scenes) if scene.shape == shape]
        # Scenes are ordered by colour; this walk meets every colour and every background.
        indices.append(having[(2 * turn + turn // 4) % len(having)])
    return indices
