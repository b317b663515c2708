"""Compares our data pipeline with webdataset and PyTorch's DataLoader: images/s, same tars.

    pip install webdataset scikit-image torch
    python benchmarks/data_against_webdataset.py [--workers 0 1 2] [--size 512] [--seconds 3]

The tars come from benchmarks/photographs.py. Each pipeline yields endless shuffled batches of uint8
images [B, size, size, 3] with the tokens of both captions; the batches are discarded:

  ours               make_loader on a data set built from the tars (building is not timed)
  webdataset         typical use: decode("pil"), resize the short side, crop the centre, tokenize
                     both captions, batch in the worker
  webdataset, tuned  expert use: the decoder scales the JPEGs, only the crop is resized, and the
                     captions of a batch are tokenized together

All three resize with Pillow's bicubic filter. The pipelines run in turn, in rounds, and ratios
compare within one round, because the load of the machine may change. Images per core divide by the
CPU seconds of the process and its workers, which other programs hardly change. With 0 workers, ours
uses threads of this process, and webdataset the main thread only.
"""

import argparse
import functools
import importlib.metadata
import io
import json
import os
import platform
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import photographs
from pea_jax.assembly.data_benchmark import cpu_seconds
from pea_jax.data import images
from pea_jax.data.read.loader import make_loader
from pea_jax.data.read.source import Source
from pea_jax.data.schema import Row
from pea_jax.data.write import builder
from pea_jax.weights.tokenizers import Tokenizer

BATCH, LENGTH, SHUFFLE = 32, 77, 1000
WHAT = "images/s", "images/s a core"
CHECKPOINTS = Path(builder.__file__).parents[2] / "tinyworld" / "checkpoints"
Tokenizers = tuple[Tokenizer, Tokenizer]


def tokenizers() -> Tokenizers:
    """Tokenizers of the native and the English captions, 77 tokens each."""
    folders = CHECKPOINTS / "xlm-roberta", CHECKPOINTS / "sd" / "tokenizer"
    return tuple(Tokenizer.from_folder(folder, LENGTH) for folder in folders)


def rows(tar: Path) -> Iterator[Row]:
    """The rows of a tar, for the builder."""
    with tarfile.open(tar) as file:
        files = {member.name: file.extractfile(member).read() for member in file}
    for name in sorted(name for name in files if name.endswith(".jpg")):
        key = name.removesuffix(".jpg")
        text = json.loads(files[f"{key}.json"])
        height, width = images.size_of(files[name])
        yield Row(
            *(key, files[name], text["caption_zh"], text["caption_en"], "zh", False, height, width)
        )


def ours(source: Source, both: Tokenizers, size: int, workers: int) -> Iterator[tuple]:
    """The loader of training."""
    loader = make_loader(
        source,
        native_batch=0,
        parallel_batch=BATCH,
        seed=0,
        native_tokenizer=both[0],
        english_tokenizer=both[1],
        image_size=size,
        workers=workers,
    )
    names = "pixels", "ids", "mask", "english_ids", "english_mask"
    with closing(loader):
        while True:
            part = next(loader)["parallel"]
            yield tuple(part[name] for name in names)


def cover(image: Image.Image, size: int) -> np.ndarray:
    """Resizes the short side to `size` and crops the centre, as torchvision's transforms do."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def scaled(data: bytes, size: int) -> np.ndarray:
    """Nearly the same pixels at lower cost."""
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (size, size))
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    image = image.convert("RGB").resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )
    return np.asarray(image)


def tokens(both: Tokenizers, texts: Sequence[dict[str, str]]) -> list[np.ndarray]:
    """Ids and mask of the native captions, then of the English ones."""
    pairs = zip(both, ("caption_zh", "caption_en"), strict=True)
    return [
        array for tokenizer, name in pairs for array in tokenizer([text[name] for text in texts])
    ]


def per_sample(both: Tokenizers, size: int, sample: tuple[Image.Image, dict]) -> tuple:
    image, text = sample
    return cover(image, size), *(array[0] for array in tokens(both, [text]))


def pixels_alone(size: int, sample: tuple[bytes, bytes]) -> tuple[np.ndarray, dict]:
    return scaled(sample[0], size), json.loads(sample[1])


def collate(both: Tokenizers, samples: Sequence[tuple[np.ndarray, dict]]) -> tuple:
    pixels, texts = zip(*samples, strict=True)
    return np.stack(pixels), *tokens(both, texts)


def webdataset(
    tars: Sequence[Path], both: Tokenizers, size: int, workers: int, *, tuned: bool
) -> Iterator[tuple]:
    """webdataset and DataLoader: workers make the batches, which arrive as torch tensors."""
    import torch
    import webdataset as wds

    urls = [str(tar) for tar in tars]
    data = wds.WebDataset(urls, shardshuffle=len(urls), seed=0).repeat().shuffle(SHUFFLE)
    if tuned:
        data = data.to_tuple("jpg", "json").map(functools.partial(pixels_alone, size))
        data = data.batched(BATCH, collation_fn=functools.partial(collate, both), partial=False)
    else:
        data = data.decode("pil").to_tuple("jpg", "json")
        data = data.map(functools.partial(per_sample, both, size)).batched(BATCH, partial=False)
    yield from torch.utils.data.DataLoader(data, batch_size=None, num_workers=workers)


def measure(
    start: Callable[[], Iterator[tuple]], workers: int, size: int, seconds: float
) -> dict[str, float]:
    """Images/s and images per CPU second, after a warm-up that fills the buffers."""
    with closing(start()) as pipeline:
        for _ in range(2 + 3 * workers):
            batch = next(pipeline)
        shapes = [tuple(array.shape) for array in batch]
        expected = [(BATCH, size, size, 3), *[(BATCH, LENGTH)] * 4]
        if shapes != expected:
            raise ValueError(f"expected a batch of {expected}, got {shapes}")
        batches, begin, spent = 0, time.perf_counter(), cpu_seconds()
        while time.perf_counter() - begin < seconds:
            next(pipeline)
            batches += 1
        took, spent = time.perf_counter() - begin, cpu_seconds() - spent
    return {"images/s": batches * BATCH / took, "images/s a core": batches * BATCH / spent}


def machine() -> str:
    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("grain", "array_record", "pillow", "webdataset", "torch", "transformers")
    )
    return (
        f"{len(os.sched_getaffinity(0))} cores of {model}, load {os.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}, {versions}"
    )


def compare(options: argparse.Namespace, scratch: Path) -> None:
    folder = options.tars or scratch / "tars"
    tars = sorted(folder.glob("*.tar")) or photographs.write(folder, options.count)
    shards = [functools.partial(rows, tar) for tar in tars]
    source = Source(builder.build(scratch, "photographs", {"train": shards}), "train")
    mean = sum(tar.stat().st_size for tar in tars) / len(source)
    print(f"{len(source)} JPEGs of {mean / 1e3:.0f} kB to {options.size} px; {machine()}\n")
    both = tokenizers()
    print("| workers | pipeline | images/s | images/s per core | speedup of ours | per core |")
    print("|---|---|---|---|---|---|")
    for workers in options.workers:
        common = both, options.size, workers
        pipelines = {
            "ours": functools.partial(ours, source, *common),
            "webdataset": functools.partial(webdataset, tars, *common, tuned=False),
            "webdataset, tuned": functools.partial(webdataset, tars, *common, tuned=True),
        }
        rounds = [
            {
                name: measure(start, workers, options.size, options.seconds)
                for name, start in pipelines.items()
            }
            for _ in range(options.rounds)
        ]
        for name in pipelines:
            cells = [f"{median(one[name][what] for one in rounds):.0f}" for what in WHAT]
            for what in WHAT:
                ratio = median(one["ours"][what] / one[name][what] for one in rounds)
                cells.append("" if name == "ours" else f"{ratio:.2f}")
            print(f"| {workers} | {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--tars", type=Path, help="folder of the tars; created if missing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        compare(options, Path(scratch))


if __name__ == "__main__":
    main()
