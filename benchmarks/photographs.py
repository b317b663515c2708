"""Makes webdataset tars of photographs in typical web sizes, with captions, from a seed.

    python benchmarks/photographs.py FOLDER [--count 2000]

The photographs are those in the wheel of scikit-image (`pip install scikit-image`), so nothing is
downloaded. They are cropped, resized, and given grain to replace the detail that enlarging loses.
The JPEGs have sides from 512 to 1280 pixels and qualities from 75 to 95; one in five is
progressive. The captions come from tinyworld.
"""

import argparse
import concurrent.futures
import functools
import io
import itertools
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pea_jax.tinyworld import captions
from pea_jax.tinyworld.splits import scenes

NAMES = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png"),
    *("grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png"),
    *("motorcycle_right.png", "retina.jpg", "rocket.jpg"),
)
SIDES, QUALITIES = (512, 1280), (75, 95)
COUNT, PER_TAR = 2000, 250


@functools.cache
def _picture(name: str) -> Image.Image:
    import skimage

    return Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")


def photograph(number: int) -> bytes:
    """A JPEG, determined by `number`."""
    rng = np.random.default_rng([number, 5])
    picture = _picture(NAMES[number % len(NAMES)])
    width, height = (int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, 2))
    scale = min(picture.width / width, picture.height / height) * rng.uniform(0.7, 1)
    left = rng.uniform(0, picture.width - width * scale)
    top = rng.uniform(0, picture.height - height * scale)
    box = left, top, left + width * scale, top + height * scale
    resized = picture.resize((width, height), Image.Resampling.BICUBIC, box=box)
    grain = rng.standard_normal((height, width, 1), np.float32) * rng.uniform(1, 5)
    pixels = (np.asarray(resized) + grain).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    quality = int(rng.integers(QUALITIES[0], QUALITIES[1] + 1))
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, progressive=rng.random() < 0.2)
    return file.getvalue()


@functools.cache
def _texts() -> list[dict[str, str]]:
    return [
        {
            "caption_zh": captions.caption(scene, "zh", template),
            "caption_en": captions.caption(scene, "en", template),
        }
        for scene, template in itertools.product(scenes("train", False), range(3))
    ]


def _write_tar(file: Path, numbers: Sequence[int]) -> Path:
    texts = _texts()
    with tarfile.open(file, "w") as tar:
        for number in numbers:
            text = json.dumps(texts[number % len(texts)], ensure_ascii=False).encode()
            for kind, data in (("jpg", photograph(number)), ("json", text)):
                member = tarfile.TarInfo(f"{number:09d}.{kind}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file


def write(folder: Path, count: int = COUNT, per_tar: int = PER_TAR) -> list[Path]:
    """Writes FOLDER/00000.tar and so on with all cores; returns the files in order."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = [range(start, min(start + per_tar, count)) for start in range(0, count, per_tar)]
    files = [folder / f"{number:05d}.tar" for number in range(len(shards))]
    with concurrent.futures.ProcessPoolExecutor() as pool:
        return list(pool.map(_write_tar, files, shards))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=COUNT)
    arguments = parser.parse_args()
    for file in write(arguments.folder, arguments.count):
        print(file, f"{file.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
