"""Pictures cut from the photographs that come with scikit-image, and tars of them."""

import functools
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

#: Of those that are in the wheel.
NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg")


@functools.cache
def photographs() -> list[Image.Image]:
    folder = Path(skimage.__file__).parent / "data"
    return [Image.open(folder / name).convert("RGB") for name in NAMES]


def crop(rng: np.random.Generator, low: int = 96, high: int = 256) -> Image.Image:
    """A piece of one of the photographs, both sides at least `low` and below `high`."""
    photograph = photographs()[rng.integers(len(NAMES))]
    width, height = (int(side) for side in rng.integers(low, high, 2))
    left = int(rng.integers(photograph.width - width))
    top = int(rng.integers(photograph.height - height))
    return photograph.crop((left, top, left + width, top + height))


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def dumped(fields: Mapping) -> bytes:
    return json.dumps(fields, ensure_ascii=False).encode()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
