"""Crops of the photographs in scikit-image, unusual files of them, and tars."""

import functools
import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

#: Photographs that are in the wheel.
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


def unusual(picture: Image.Image) -> dict[str, tuple[bytes, int, int]]:
    """Valid but unusual files of a picture, with their heights and widths."""
    rotated = Image.Exif()
    rotated[0x0112] = 6
    files = {
        "png": encoded(picture, "PNG"),
        "cmyk": encoded(picture.convert("CMYK")),
        "palette": encoded(picture.quantize(16), "PNG"),
        "alpha": encoded(picture.convert("RGBA"), "PNG"),
        "grey": encoded(picture.convert("L")),
        "progressive": encoded(picture, progressive=True),
        "webp": encoded(picture, "WEBP"),
    }
    made = {name: (file, picture.height, picture.width) for name, file in files.items()}
    return made | {"rotated": (encoded(picture, exif=rotated), picture.width, picture.height)}


def bomb() -> bytes:
    """A tiny PNG whose header declares 100,000 x 100,000 pixels."""
    data = bytearray(encoded(Image.new("1", (8, 8)), "PNG"))
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


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
