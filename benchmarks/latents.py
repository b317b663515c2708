"""What a run gains from stored latents, and what it would gain from stored text states.

    python benchmarks/latents.py steps [--rows 2048] [--steps 40]
    python benchmarks/latents.py flops

`steps` trains configs/tiny_zh.py from pixels and from latents and prints median times. The steps of
both alternate in one process, so that other programs slow both equally. `flops` counts the
operations of a step of SD 1.5 and SDXL and of its parts, as written and from shapes only, on any
machine. It also prints the size of a row on disk.
"""

import argparse
import contextlib
import functools
import io
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image

from pea_jax.assembly import trainer
from pea_jax.cli import config as configs
from pea_jax.data.write import builder
from pea_jax.models.latents import LatentCodec
from pea_jax.runtime import parallel
from pea_jax.tasks import prepare
from pea_jax.tinyworld import dataset

CONFIGS = Path(__file__).parents[1] / "configs"

#: Rows of a step, in the proportion of the configs.
ROWS = {"sd15_zh": {"native": 1, "parallel": 3}, "sdxl_zh": {"native": 1, "parallel": 4}}


def some(native: bool, count: int) -> Iterator:
    return itertools.islice(dataset.rows("train", native, ("zh",)), count)


def tiny(data_dir: Path, **changes: Any) -> ConfigDict:
    made = configs.load(CONFIGS / "tiny_zh.py")
    fields = {"data.dataset": "part", "data.data_dir": str(data_dir), "train.sample_every": 0}
    made.update_from_flattened_dict(
        fields | {name.replace("__", "."): value for name, value in changes.items()}
    )
    return made


def measure_steps(rows: int, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shards = [functools.partial(some, native, rows // 2) for native in (False, True)]
        builder.build(folder, "part", {"train": shards})
        made = tiny(Path(folder), data__latents=True)
        start = time.perf_counter()
        prepare.prepare(made, latents=True)
        print(f"prepare --latents, {rows} rows, compiling too: {time.perf_counter() - start:.1f} s")
        runs = {
            "pixels": trainer.build(tiny(Path(folder))),
            "latents": trainer.build(made),
        }
        seconds = in_turn(runs, steps)
    device = jax.devices()[0].device_kind
    print(f"{jax.device_count()} x {device}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print("| from | ms per step | steps/s | speedup |\n|---|---|---|---|")
    median = {name: statistics.median(times) for name, times in seconds.items()}
    for name, value in median.items():
        print(f"| {name} | {1e3 * value:.1f} | {1 / value:.2f} | {median['pixels'] / value:.2f} |")


def in_turn(runs: dict[str, trainer.Run], steps: int) -> dict[str, list[float]]:
    """Seconds of every step but the first, loading of the batch included, by run."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    states = {name: one.state for name, one in runs.items()}
    with contextlib.ExitStack() as stack:
        for one in runs.values():
            stack.enter_context(contextlib.closing(one.loader))
        for turn in range(steps + 1):
            for name, one in runs.items():
                start = time.perf_counter()
                batch = parallel.to_global(next(one.loader), one.mesh)
                states[name], metrics = one.step(states[name], one.frozen, batch, one.key)
                jax.block_until_ready(metrics)
                if turn:
                    times[name].append(time.perf_counter() - start)
    return times


def flops_of(function: Callable, *arguments: Any) -> float:
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def count_flops() -> None:
    print("| config | pixels | part | TFLOP per row | share of the step |\n|---|---|---|---|---|")
    for name, size in [("sd15_zh", (512, 512)), ("sdxl_zh", (640, 640)), ("sdxl_zh", (1024, 1024))]:
        counted = parts(name, size)
        rows = sum(ROWS[name].values())
        whole = counted["a step from pixels"]
        for part, flops in counted.items():
            cells = f"{flops / rows / 1e12:.3f} | {flops / whole:.1%}"
            print(f"| {name} | {size[0]}x{size[1]} | {part} | {cells} |", flush=True)


def parts(name: str, size: tuple[int, int]) -> dict[str, float]:
    """Operations of a step and of its parts, as written."""
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    counted: dict[str, float] = {}
    for label, stored in [("a step from pixels", False), ("a step from latents", True)]:
        made = configs.load(CONFIGS / f"{name}.py")
        made.update_from_flattened_dict(
            {"model.attention": "xla", "model.dtype": "bfloat16", "data.latents": stored}
        )
        built = trainer.make_trainer(made, mesh, abstract=True)
        batch = trainer.batch_shapes(built, ROWS[name], size)
        lowered = built.step.lower(built.state, built.frozen, batch, built.key)
        counted[label] = lowered.cost_analysis()["flops"]
    pipeline, rows = built.pipeline, ROWS[name]
    networks = {
        "VAE encoder": (pipeline.base.vae, lambda vae, pixels: LatentCodec(vae).moments(pixels)),
        "language encoder": (pipeline.language.tower, lambda tower, *text: tower(*text).tokens),
        "English text side": (pipeline.base.text_encoder, lambda towers, *text: towers(*text)),
    }

    def tokens(ids: str, mask: str, count: int) -> list[jax.ShapeDtypeStruct]:
        # The step also encodes the empty prompt.
        texts = built.frozen["empty"]
        return [
            jax.ShapeDtypeStruct((count + 1, *texts[each].shape[1:]), np.int32)
            for each in (ids, mask)
        ]

    inputs = {
        "VAE encoder": [jax.ShapeDtypeStruct((sum(rows.values()), *size, 3), np.uint8)],
        "language encoder": tokens("ids", "mask", sum(rows.values())),
        "English text side": tokens("english_ids", "english_mask", rows["parallel"]),
    }
    for part, (network, call) in networks.items():
        graph, state = nnx.split(network)

        def alone(state: Any, *arguments: Any, graph: Any = graph, call: Any = call) -> Any:
            return call(nnx.merge(graph, state), *arguments)

        counted[part] = flops_of(alone, state, *inputs[part])
    return counted


def count_bytes() -> None:
    """Bytes of a row: its image, its latents, and its text states in 16 bits."""
    import skimage.data  # from the extra "test"

    pictures = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()]
    print("\n| what | size or shape | kB per row |\n|---|---|---|")
    for side in (512, 640, 1024):
        sizes = []
        for pixels in pictures:
            file = io.BytesIO()
            image = Image.fromarray(pixels)
            image = image.crop((0, 0, *(min(image.size),) * 2)).resize((side, side))
            image.save(file, "JPEG", quality=90)
            sizes.append(file.tell())
        print(f"| JPEG, quality 90 | {side}x{side} | {statistics.mean(sizes) / 1e3:.0f} |")
        latent = (2, side // 8, side // 8, 4)
        for dtype in ("float32", "float16"):
            size = np.prod(latent) * np.dtype(dtype).itemsize
            print(f"| moments, {dtype} | {list(latent)} | {size / 1e3:.0f} |")
    states = {
        "XLM-R large": [(77, 1024)],
        "Chinese-CLIP": [(52, 1024)],
        "English side of SD 1.5": [(77, 768)],
        "English side of SDXL": [(77, 2048), (1280,)],
    }
    for name, shapes in states.items():
        size = sum(2 * np.prod(shape) for shape in shapes)
        label = " + ".join(str(list(shape)) for shape in shapes)
        print(f"| text states of {name}, bfloat16 | {label} | {size / 1e3:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["steps", "flops"])
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    if options.what == "steps":
        measure_steps(options.rows, options.steps)
    else:
        count_flops()
        count_bytes()


if __name__ == "__main__":
    main()
