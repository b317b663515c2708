"""`pea-jax sample`: prompts in, PNG files out.

    OUTPUT/00000.png, 00001.png, ...   one a prompt
    OUTPUT/grid.png                    the first of them at a glance
    OUTPUT/manifest.jsonl              a line an image: file, prompt, seed, what was cut, settings

A folder that holds anything already is refused, so what lies in it is of one call. The manifest's
line of an image is written after its file: what an interrupted call did is what the manifest says.
"""

import collections
import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from pea_jax import checkpoint, parallel, storage
from pea_jax.evals import grid
from pea_jax.models.adapter import Adapter
from pea_jax.pipeline import Pipeline, Settings
from pea_jax.run import model_dtype
from pea_jax.storage import AnyPath
from pea_jax.weights.save import refuse_used

MANIFEST_FILE = "manifest.jsonl"
GRID_FILE = "grid.png"

#: Images in grid.png at most; the files and the manifest have all.
GRID_IMAGES = 64


def sample(
    config: ConfigDict,
    workdir: AnyPath | None,
    *,
    prompts: Sequence[str],
    output: AnyPath,
    step: int | None = None,
) -> AnyPath:
    """Samples one image a prompt.

    Args:
      config: of the run; `sample` says how, `model` with what.
      workdir: of the run; None samples the base model alone, in English.
      prompts: one or more.
      output: a folder that isn't there yet, or is empty.
      step: of the checkpoint; None takes the latest.

    Raises:
      ValueError: no prompts, a folder that holds something already, or settings that don't fit the
        model; nothing is written then.
      FileNotFoundError: the workdir has no checkpoint of this step.
    """
    if not prompts:
        raise ValueError("expected one or more prompts, got none")
    refuse_used(output)
    origin = {"base": config.model.base}
    if workdir is None:
        pipeline = load_pipeline(config, None)
    else:
        adapter, step = checkpoint.load_adapter(workdir, step=step)
        pipeline = load_pipeline(config, adapter)
        origin |= {"workdir": str(workdir), "step": step}
    settings = sample_settings(config)
    seeds = [config.sample.seed + i for i in range(len(prompts))]
    batches = pipeline.batches(prompts, settings, seed=seeds)

    lines = [
        {
            "file": f"{index:05d}.png",
            "prompt": prompt,
            "seed": seed,
            "cut": pipeline.tokenizer.cut(prompt),
            "settings": dataclasses.asdict(settings) | origin,
        }
        for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
    ]
    batches = progress(batches, len(prompts))
    if parallel.process_index() == 0:
        _write(output, lines, batches)
        print(f"{output}: {len(prompts)} images, {GRID_FILE}, {MANIFEST_FILE}")
    else:
        collections.deque(batches, maxlen=0)
    return output


def _write(
    output: AnyPath,
    lines: Sequence[dict[str, Any]],
    batches: Iterator[UInt8[np.ndarray, "n H W 3"]],
) -> None:
    """Files of the images in `batches`, in the order of the manifest's `lines`."""
    output.mkdir(parents=True, exist_ok=True)
    first, rest = [], iter(lines)
    with storage.Growing(output / MANIFEST_FILE) as manifest:
        for images in batches:
            for image, line in zip(images, rest, strict=False):
                storage.replace_bytes(output / line["file"], grid.png(Image.fromarray(image)))
                manifest.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
            first += list(images[: GRID_IMAGES - len(first)])
    # A caption that the shipped font can't write would be boxes: the file's name says which it is.
    captions = [line["prompt"] if grid.writable(line["prompt"]) else line["file"] for line in lines]
    picture = grid.tile(np.stack(first), captions[: len(first)])
    storage.replace_bytes(output / GRID_FILE, grid.png(picture))


def read_prompts(file: AnyPath) -> list[str]:
    """The prompts of a file, one a line; lines that are blank are left out.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it isn't text in UTF-8, or has no prompt.
    """
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected text in UTF-8 ({error})") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{file}: expected one prompt a line, found none")
    return prompts


def load_pipeline(config: ConfigDict, adapter: Adapter | None) -> Pipeline:
    """The pipeline of a run's config with an adapter; None gives the English base model."""
    model = config.model
    mesh = parallel.make_mesh(config.mesh.data, config.mesh.fsdp)
    return Pipeline.from_pretrained(
        model.base,
        None if adapter is None else model.language_encoder,
        adapter,
        dtype=model_dtype(model.dtype, parallel.platform(mesh)),
        mesh=mesh,
        max_length=model.language_max_length,
        attention=model.attention,
    )


def sample_settings(config: ConfigDict) -> Settings:
    """The settings under `config.sample`, where 0 stands for a default."""
    given = config.sample
    return Settings(
        steps=given.steps,
        guidance_scale=given.guidance_scale,
        guidance_rescale=given.guidance_rescale,
        solver=given.solver,
        negative_prompt=given.negative_prompt,
        height=given.height or config.data.image_size,
        width=given.width or config.data.image_size,
        batch_size=given.batch_size or None,
    )


def progress(
    batches: Iterator[UInt8[np.ndarray, "n H W 3"]], total: int, told: str = "sampling"
) -> Iterator[UInt8[np.ndarray, "n H W 3"]]:
    """Passes batches on and shows on standard error how many images there were."""
    columns = ["{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(
        *columns, console=Console(stderr=True), disable=parallel.process_index() > 0
    ) as bar:
        task = bar.add_task(told, total=total)
        for images in batches:
            yield images
            bar.update(task, advance=len(images))
