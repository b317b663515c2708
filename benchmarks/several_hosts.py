"""Compares losses and images of one run on several process counts and meshes.

    python benchmarks/several_hosts.py [--steps 5] [--meshes 2x4:2,4x2:4]

Trains configs/tiny_zh.py for a few steps on each mesh (PROCESSESxDEVICES:FSDP), in real processes
on this machine, and samples a few prompts with the adapter of the first run. Prints the differences
of losses and images from those of one process with one device. Exits with 1 if a difference exceeds
float32 rounding.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import several

MESHES = "1x8:1,1x8:2,1x8:4,2x4:1,2x4:2,2x4:4,4x2:1,4x2:2,4x2:4"

#: Relative tolerance of losses; tolerance of pixels in levels of 255.
LOSS_TOLERANCE, IMAGE_TOLERANCE = 1e-4, 1

PROMPTS = ["夜空中有一个红色的大圆形", "雪地上有一个蓝色的小星星", "沙滩上有一个红色的大灯笼"]


def run(arguments: list[str], processes: int, devices: int, fsdp: int) -> float:
    """Runs a command and returns its duration in seconds; exits if it fails."""
    start = time.perf_counter()
    arguments = [*arguments, f"--config.mesh.fsdp={fsdp}"]
    with several.start(arguments, processes=processes, devices=devices) as group:
        if any(group.wait(1800)):
            sys.exit("\n".join(group.output(index) for index in range(processes)))
    return time.perf_counter() - start


def losses(workdir: Path) -> np.ndarray:
    """Loss and loss terms of every step, [steps, terms]."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    names = sorted(name for name in lines[0] if name.startswith(("loss", "feature")))
    return np.array([[line[name] for name in names] for line in lines])


def images(folder: Path) -> np.ndarray:
    """The image of every prompt, [prompts, H, W, 3]."""
    files = sorted(folder.glob("0*.png"))
    return np.stack([np.asarray(Image.open(file)).astype(int) for file in files])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--meshes", default=MESHES)
    options = parser.parse_args()
    config = ["--config", str(several.ROOT / "configs" / "tiny_zh.py")]
    fields = {"steps": options.steps, "save_every": options.steps, "log_every": 1}
    training = [f"--config.train.{name}={value}" for name, value in fields.items()]
    training += ["--config.train.sample_every=0", "--config.data.batch_size=32"]
    sampling = [f"--prompt={prompt}" for prompt in PROMPTS]
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder, "1x1:1")

        def both(name: str, processes: int, devices: int, fsdp: int) -> float:
            workdir = Path(folder, name)
            train = ["train", *config, "--workdir", str(workdir), *training]
            seconds = run(train, processes, devices, fsdp)
            sample = ["sample", "--workdir", str(first), *sampling]
            run([*sample, "--output", f"{workdir}-images"], processes, devices, fsdp)
            return seconds

        both(first.name, 1, 1, 1)
        wanted, drawn = losses(first), images(Path(f"{first}-images"))
        print("| processes x devices | fsdp | loss, worst term | images, levels of 255 | train s |")
        print("|---|---|---|---|---|", flush=True)
        failed = False
        for mesh in options.meshes.split(","):
            layout, fsdp = mesh.split(":")
            processes, devices = map(int, layout.split("x"))
            seconds = both(mesh, processes, devices, int(fsdp))
            off = np.max(np.abs(losses(Path(folder, mesh)) / wanted - 1))
            levels = np.abs(images(Path(folder, f"{mesh}-images")) - drawn).max()
            failed |= off > LOSS_TOLERANCE or levels > IMAGE_TOLERANCE
            print(f"| {layout} | {fsdp} | {off:.1e} | {levels} | {seconds:.0f} |", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
