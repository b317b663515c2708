"""`pea-jax evaluate`: how well a trained adapter draws tinyworld's held-out scenes.

    OUTPUT/eval.json   the scores of `evals.scores.SCORERS`
    OUTPUT/grid.png    some prompts in rows, the images of each model in columns

There are two sets of prompts, with the same scenes in every language: `general` (figures that every
language has a word for) and `native` (motifs that a word-for-word translation misses). Four models
draw them:

    teacher      the base model, from captions in English
    translation  the base model, from the Chinese names of motifs translated word for word; only
                 where Chinese is one of the languages
    untrained    language encoder and a random adapter, from captions in the first language
    student      language encoder and the trained adapter, from captions in each language
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
from pea_jax.evals import grid
from pea_jax.evals.scores import SCORERS
from pea_jax.inference.pipeline import Pipeline
from pea_jax.inference.settings import Settings
from pea_jax.models.adapter import Adapter
from pea_jax.runtime import processes, storage
from pea_jax.runtime.progress import progress
from pea_jax.runtime.storage import AnyPath
from pea_jax.tinyworld import captions, splits, world
from pea_jax.tinyworld.world import Scene

EVAL_FILE = "eval.json"
GRID_FILE = "grid.png"

#: Explains the scores; printed with the table and written to eval.json.
ABOUT = (
    "Share of images in which the oracle reads what was asked for, over held-out scenes. "
    "Teacher: the English model, given English. Untrained and student: the adapter before and "
    "after training, given the language of the row. Translation: the English model, given the "
    'motif\'s Chinese name word for word ("bear cat" for a panda). That this baseline fails is by '
    "construction, the failure that the paper describes: the English side calls the motif "
    "something else."
)

#: A model, and the language of its prompts.
Column = tuple[str, str]
#: By the name of the prompt set and the column.
Images = dict[tuple[str, Column], UInt8[np.ndarray, "N H W 3"]]


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """Scenes of one set and their prompts, one entry per image.

    Attributes:
      scenes: what each image should show.
      texts: the prompts by column; a model without an entry does not draw this set.
      seeds: of each image, the same for all columns.
    """

    scenes: tuple[Scene, ...]
    texts: dict[Column, list[str]]
    seeds: list[int]


def evaluate(
    config: ConfigDict, workdir: AnyPath, *, output: AnyPath | None = None, step: int | None = None
) -> dict:
    """Score a run, write eval.json and grid.png, and print a table.

    Args:
      config: of the run; `evaluate` sets the number of images, `sample` how they are sampled.
      workdir: of the run.
      output: a folder, made where it is missing; None is the workdir. An earlier evaluation is
        replaced.
      step: of the checkpoint; None takes the latest.

    Returns:
      The content of eval.json.

    Raises:
      ValueError: the run is not of tinyworld, or its images do not have tinyworld's size.
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
    for (name, (model, language)), drawn in images.items():
        scenes, captions_en = sets[name].scenes, sets[name].texts["teacher", "en"]
        values: dict[str, float] = {}
        for scorer in SCORERS.values():
            values |= scorer.score(drawn, scenes, captions_en)
        results[name].setdefault(language, {})[model] = values
    results |= {
        "counts": {name: len(prompts.scenes) for name, prompts in sets.items()},
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
    if processes.process_index() == 0:
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

    The caption templates alternate, so all of them occur.
    """
    settings, languages = config.evaluate, _languages(config)
    scenes = splits.scenes("test", native)
    count = min(settings.prompts or len(scenes), len(scenes))
    chosen = [scenes[i * len(scenes) // count] for i in range(count)]  # at even distances
    rows = [(i, s) for i, s in enumerate(chosen) for _ in range(settings.images_per_prompt)]

    def caption(language: str) -> list[str]:
        return [captions.caption(scene, language, i) for i, scene in rows]

    texts = {("teacher", "en"): caption("en"), ("untrained", languages[0]): caption(languages[0])}
    texts |= {("student", language): caption(language) for language in languages}
    if native and "zh" in languages:
        texts["translation", "en"] = [captions.literal(scene, i) for i, scene in rows]
    seeds = [settings.seed + i for i in range(len(rows))]
    return PromptSet(tuple(scene for _, scene in rows), texts, seeds)


def draw(sets: dict[str, PromptSet], images: Images) -> Image.Image:
    """One row per figure: its prompts on the left, its image in each column."""
    columns = list(dict.fromkeys(column for prompts in sets.values() for column in prompts.texts))
    rows, labels = [], []
    for name, prompts in sets.items():
        for index in _one_per_shape(prompts.scenes):
            cells = [images.get((name, column)) for column in columns]
            rows.append([None if cell is None else cell[index] for cell in cells])
            texts = {column: texts[index] for column, texts in prompts.texts.items()}
            lines = [text for (model, _), text in texts.items() if model == "student"]
            lines.append(texts["teacher", "en"])
            if ("translation", "en") in texts:
                lines.append(f"translation: {texts['translation', 'en']}")
            labels.append(lines)
    return grid.table(rows, headers=[" ".join(column) for column in columns], captions=labels)


def show(results: dict, console: Console) -> None:
    """Print the scores as a table, with their explanation."""
    names = [name for scorer in SCORERS.values() for name in scorer.names]
    title = "tinyworld, held-out scenes"
    table = Table("prompts", "model", title=title, caption=results["about"])
    for name in names:
        table.add_column(name, justify="right")
    for name, count in results["counts"].items():
        for language, models in results[name].items():
            for model, values in models.items():
                cells = [f"{values[score]:.2f}" for score in names]
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
    """A model's images of every set and language that it draws, in one pass."""
    parts = {
        (name, column): (texts, prompts.seeds)
        for name, prompts in sets.items()
        for column, texts in prompts.texts.items()
        if column[0] == model
    }
    if not parts:
        return {}
    texts = [text for texts, _ in parts.values() for text in texts]
    seeds = [seed for _, seeds in parts.values() for seed in seeds]
    batches = pipeline.batches(texts, settings, seed=seeds)
    images = np.concatenate(list(progress(batches, len(texts), model)))
    ends = np.cumsum([len(texts) for texts, _ in parts.values()])
    return dict(zip(parts, np.split(images, ends[:-1]), strict=True))


def _one_per_shape(scenes: Sequence[Scene]) -> list[int]:
    """The index of one scene per shape, chosen for variety in colour and background."""
    indices = []
    for turn, shape in enumerate(dict.fromkeys(scene.shape for scene in scenes)):
        matching = [i for i, scene in enumerate(scenes) if scene.shape == shape]
        # Scenes are ordered by colour; this walk meets every colour and every background.
        indices.append(matching[(2 * turn + turn // 4) % len(matching)])
    return indices
