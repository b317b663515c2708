"""Images a second of the data pipeline alone: read, decode, crop, batch (tokens are not counted).

    python benchmarks/data_pipeline.py [--workers 0 1 2] [--seconds 10]

Two sets: tinyworld (64x64 PNG) and JPEGs of 1024x768, quality 90, with the spectrum of photographs,
cropped to 512x512. Prints one Markdown row each, with the cores that the machine has.
"""

import argparse
import functools
import io
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pea_jax.data.builder import build
from pea_jax.data.pipeline import make_loader
from pea_jax.data.schema import Row
from pea_jax.data.source import Source
from pea_jax.tinyworld import dataset as tinyworld

HEIGHT, WIDTH, CROP, PHOTOS, BATCH = 768, 1024, 512, 256, 32


def photo(seed: int) -> bytes:
    """A JPEG whose amplitudes fall with frequency, as those of photographs do."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    light = rng.standard_normal((HEIGHT, WIDTH, 1))
    colours = light + 0.3 * rng.standard_normal((HEIGHT, WIDTH, 3))
    spectrum = np.fft.rfft2(colours, axes=(0, 1))
    pixels = np.fft.irfft2(spectrum / (frequency + 1 / WIDTH)[..., None], axes=(0, 1))
    pixels = 128 + 50 * pixels / pixels.std()
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def photo_rows() -> Iterator[Row]:
    for seed in range(PHOTOS):
        yield Row(f"photo/{seed}", photo(seed), "照片", "a photo", "zh", False, HEIGHT, WIDTH)


def no_tokens(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    ids = np.zeros((len(texts), 1), np.int32)
    return ids, ids


def measure(source: Source, image_size: int, workers: int, seconds: float) -> float:
    """Images a second after the first four batches."""
    loader = make_loader(
        source,
        native_batch=0,
        parallel_batch=BATCH,
        seed=0,
        native_tokenizer=no_tokens,
        english_tokenizer=no_tokens,
        image_size=image_size,
        workers=workers,
    )
    for _ in range(4):
        next(loader)
    batches, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        next(loader)
        batches += 1
    rate = batches * BATCH / (time.perf_counter() - start)
    loader.close()
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        one_of_each = functools.partial(tinyworld.rows, "test", False)
        sets = {
            "64 px PNG": (build(folder, "tiny", {"train": [one_of_each]}), 64),
            f"{WIDTH}x{HEIGHT} JPEG": (build(folder, "photos", {"train": [photo_rows]}), CROP),
        }
        print(f"{os.cpu_count()} cores\n")
        print("| images | to | workers | images/s |\n|---|---|---|---|")
        for name, (path, size) in sets.items():
            source = Source(Path(path), "train")
            for workers in arguments.workers:
                rate = measure(source, size, workers, arguments.seconds)
                print(f"| {name} | {size} px | {workers or 'threads'} | {rate:.0f} |", flush=True)


if __name__ == "__main__":
    main()
