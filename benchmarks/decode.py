"""Time to decode and resize a JPEG with several libraries, and the difference of their pixels.

    pip install scikit-image simplejpeg opencv-python-headless
    python benchmarks/decode.py [--size 512 1024] [--count 100]

The JPEGs come from benchmarks/photographs.py; each is resized to cover a square and cropped to its
centre. The libraries run in turn on one core; times are medians in milliseconds of CPU per image.
The reference for PSNR (dB) decodes the whole image and resizes it with Pillow's Lanczos filter.
Libraries that are not installed are skipped.
"""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import photographs
from pea_jax.data import images

Bicubic = Image.Resampling.BICUBIC


def opened(data: bytes, size: int) -> Image.Image:
    """Decoded by Pillow; libjpeg scales images of at least twice the size."""
    image = Image.open(io.BytesIO(data))
    image.draft(None, (size, size))
    image.load()
    return image


def resized(image: Image.Image, size: int, how: Image.Resampling = Bicubic) -> np.ndarray:
    """Cropped and resized by Pillow."""
    box = images.box(image.height, image.width, size, size)
    return np.asarray(image.resize((size, size), how, box=box, reducing_gap=3.0))


def by_area(pixels: np.ndarray, size: int) -> np.ndarray:
    """By OpenCV, on whole pixels: area filter to shrink, bicubic filter to enlarge."""
    import cv2

    box = images.box(*pixels.shape[:2], size, size)
    left, top, right, bottom = (round(side) for side in box)
    pixels = pixels[top:bottom, left:right]
    how = cv2.INTER_AREA if min(pixels.shape[:2]) > size else cv2.INTER_CUBIC
    return cv2.resize(pixels, (size, size), interpolation=how)


def by_simplejpeg(data: bytes, size: int) -> np.ndarray:
    """Decoded by libjpeg-turbo, which scales in eighths."""
    import simplejpeg

    return simplejpeg.decode_jpeg(
        data, "RGB", fastdct=False, fastupsample=False, min_height=size, min_width=size
    )


def by_opencv(data: bytes) -> np.ndarray:
    import cv2

    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def reference(data: bytes, size: int) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    box = images.box(image.height, image.width, size, size)
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box=box))


DECODE = {
    "Pillow": lambda data, size: np.asarray(opened(data, size)),
    "simplejpeg": by_simplejpeg,
    "OpenCV": lambda data, size: by_opencv(data),
}
WHOLE = {
    "images.decode: Pillow, bicubic": lambda data, size: images.decode(data, size, size),
    "Pillow, Hamming": lambda data, size: resized(
        opened(data, size), size, Image.Resampling.HAMMING
    ),
    "Pillow, bilinear": lambda data, size: resized(
        opened(data, size), size, Image.Resampling.BILINEAR
    ),
    "simplejpeg, Pillow bicubic": lambda data, size: resized(
        Image.fromarray(by_simplejpeg(data, size)), size
    ),
    "Pillow, OpenCV area": lambda data, size: by_area(np.asarray(opened(data, size)), size),
    "OpenCV, area": lambda data, size: by_area(by_opencv(data), size),
}


def there(way: Callable, data: bytes, size: int) -> bool:
    try:
        way(data, size)
    except ImportError:
        return False
    return True


def measure(
    ways: dict[str, Callable], files: list[bytes], size: int, rounds: int
) -> dict[str, float]:
    """Milliseconds of CPU per image, by library."""
    found = {name: [] for name, way in ways.items() if there(way, files[0], size)}
    for _ in range(rounds):
        for name, times in found.items():
            start = time.process_time()
            for data in files:
                ways[name](data, size)
            times.append(1e3 * (time.process_time() - start) / len(files))
    return {name: statistics.median(times) for name, times in found.items()}


def psnr(way: Callable, files: list[bytes], size: int) -> float:
    errors = [
        np.square(way(data, size).astype(np.float32) - reference(data, size)).mean()
        for data in files
    ]
    return 10 * np.log10(255**2 / np.mean(errors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if there(DECODE["OpenCV"], photographs.photograph(0), 64):
        sys.modules["cv2"].setNumThreads(1)
    files = [photographs.photograph(number) for number in range(options.count)]
    print("| to | what | ms | relative to images.decode | PSNR dB |\n|---|---|---|---|---|")
    for size in options.size:
        whole = measure(WHOLE, files, size, options.rounds)
        ours = next(iter(whole.values()))
        for name, ms in measure(DECODE, files, size, options.rounds).items():
            print(f"| {size} px | decoding only: {name} | {ms:.2f} | {ms / ours:.2f} | |")
        for name, ms in whole.items():
            db = psnr(WHOLE[name], files[:50], size)
            print(f"| {size} px | {name} | {ms:.2f} | {ms / ours:.2f} | {db:.1f} |", flush=True)


if __name__ == "__main__":
    main()
