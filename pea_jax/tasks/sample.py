"""`pea-jax sample`: prompts in, PNG files out.

    OUTPUT/00000.png, 00001.png, ...   one per prompt
    OUTPUT/grid.png                    the first `GRID_IMAGES` of them
    OUTPUT/manifest.jsonl              one line per image: file, prompt, seed, text cut, settings

A folder that is not empty is refused, so its content is always from one call. The manifest's line
of an image is written after its file: after an interruption, the manifest lists the finished files.
With several processes, each writes the images that its devices made, into a folder that all of them
reach. The first process writes the manifest and the grid.
"""

import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image

from pea_jax.assembly import model_factory
from pea_jax.evals import grid
from pea_jax.runtime import processes, storage
from pea_jax.runtime.growing import GrowingFile
from pea_jax.runtime.progress import progress
from pea_jax.runtime.storage import AnyPath
from pea_jax.weights.save import refuse_used

MANIFEST_FILE = "manifest.jsonl"
GRID_FILE = "grid.png"

#: The most images in grid.png.
GRID_IMAGES = 64


def sample(
    config: ConfigDict,
    workdir: AnyPath | None,
    *,
    prompts: Sequence[str],
    output: AnyPath,
    step: int | None = None,
) -> AnyPath:
    """Sample one image per prompt; returns `output`.

    Args:
      config: of the run; `sample` sets how images are sampled, `model` the networks.
      workdir: of the run; None samples the base model alone, in English.
      prompts: one or more.
      output: a new or empty folder, the same for all processes.
      step: of the checkpoint; None takes the latest.

    Raises:
      ValueError: no prompts, a folder that is not empty, or settings that do not fit the model;
        nothing is written then.
      FileNotFoundError: the workdir has no checkpoint of this step.
    """
    if not prompts:
        raise ValueError("expected one or more prompts, got none")
    refuse_used(output)
    origin = {"base": config.model.base}
    if workdir is None:
        pipeline = model_factory.load_pipeline(config, None)
    else:
        adapter, step = model_factory.load_trained_adapter(workdir, step=step)
        pipeline = model_factory.load_pipeline(config, adapter)
        origin |= {"workdir": str(workdir), "step": step}
    settings = model_factory.sample_settings(config)
    seeds = [config.sample.seed + i for i in range(len(prompts))]
    shares = pipeline.shares(prompts, settings, seed=seeds)
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
    # No process writes before all have checked the folder.
    processes.wait_for_all("sample: checked")
    output.mkdir(parents=True, exist_ok=True)
    written = _written(output, lines, shares)
    if processes.process_index() > 0:
        for _ in written:
            pass
        return output
    with GrowingFile(output / MANIFEST_FILE) as manifest:
        for done in progress(written, len(prompts)):
            for line in done:
                manifest.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
    _write_grid(output, lines[:GRID_IMAGES])
    print(f"{output}: {len(prompts)} images, {GRID_FILE}, {MANIFEST_FILE}")
    return output


def _written(
    output: AnyPath,
    lines: Sequence[dict[str, Any]],
    shares: Iterator[tuple[range, dict[int, UInt8[np.ndarray, "H W 3"]]]],
) -> Iterator[Sequence[dict[str, Any]]]:
    """The lines of each batch, once every process has written its images of it."""
    for numbers, images in shares:
        for number, image in images.items():
            file = output / lines[number]["file"]
            storage.replace_bytes(file, grid.png(Image.fromarray(image)))
        processes.wait_for_all("sample: written")
        yield [lines[number] for number in numbers]


def _write_grid(output: AnyPath, lines: Sequence[dict[str, Any]]) -> None:
    """Write a grid of the images of `lines`, from their files."""
    missing = [line["file"] for line in lines if not (output / line["file"]).exists()]
    if missing:
        raise ValueError(
            f"{output}: expected a folder that all processes reach, but {missing[0]} of another "
            "one is not here"
        )
    images = [
        np.asarray(Image.open(io.BytesIO((output / line["file"]).read_bytes()))) for line in lines
    ]
    # The file's name replaces a prompt that the shipped font has no glyphs for.
    captions = [line["prompt"] if grid.writable(line["prompt"]) else line["file"] for line in lines]
    storage.replace_bytes(output / GRID_FILE, grid.png(grid.tile(np.stack(images), captions)))


def read_prompts(file: AnyPath) -> list[str]:
    """The prompts of a file, one per line; blank lines are left out.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not text in UTF-8, or has no prompt.
    """
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected text in UTF-8 ({error})") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{file}: expected one prompt a line, found none")
    return prompts
