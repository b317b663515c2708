"""Small data sets whose pictures encode their row numbers."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pea_jax.data.read.source import Source
from pea_jax.data.schema import Row
from pea_jax.data.write.builder import build

SIDE = 8

#: Rows of the set that `source` makes: (language, native) -> how many.
COUNTS = {("zh", False): 23, ("zh", True): 13, ("ja", False): 7, ("ja", True): 5}


def png(number: int, height: int = SIDE, width: int = SIDE) -> bytes:
    """A picture of one colour, which encodes `number`."""
    pixels = np.full((height, width, 3), (number // 256, number % 256, 77), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def number_of(pixels: np.ndarray) -> int:
    """The number in a picture of `png`."""
    assert (pixels == pixels[0, 0]).all()
    high, low, mark = (int(value) for value in pixels[0, 0])
    assert mark == 77
    return 256 * high + low


def row(number: int, language: str = "zh", native: bool = False, **changes) -> Row:
    values = {
        "key": f"row{number}",
        "image": png(number),
        "caption": f"c{number}",
        "caption_en": "" if native else f"e{number}",
        "language": language,
        "native": native,
        "height": SIDE,
        "width": SIDE,
    }
    return Row(**(values | changes))


def rows() -> list[Row]:
    """The rows of COUNTS, numbered from 0, kinds interleaved."""
    kinds = [kind for kind, count in COUNTS.items() for _ in range(count)]
    order = np.random.default_rng(0).permutation(len(kinds))
    return [row(number, *kinds[place]) for number, place in enumerate(order)]


def of_kinds(
    folder: Path,
    kinds: dict[tuple[str, bool, tuple[int, int]], int],
    damaged: Sequence[int] = (),
) -> Source:
    """A set of rows of several sizes: (language, native, (height, width)) -> how many.

    Rows are numbered from 0 in that order, and stored in another.
    """
    made = []
    for (language, native, size), count in kinds.items():
        for _ in range(count):
            number = len(made)
            image = png(number, *size)[: 45 if number in damaged else None]
            sides = {"height": size[0], "width": size[1]}
            made.append(row(number, language, native, image=image, **sides))
    made = [made[place] for place in np.random.default_rng(1).permutation(len(made))]
    return Source(build(folder, "kinds", {"train": [lambda: made]}), "train")


def numbers(language: str, native: bool) -> list[int]:
    return [
        number
        for number, each in enumerate(rows())
        if (each.language, each.native) == (language, native)
    ]


def source(folder: Path, damaged: Sequence[int] = ()) -> Source:
    """The set of `rows`, in two shards; the pictures of `damaged` rows are cut short."""
    made = [
        row(i, each.language, each.native, image=each.image[:45]) if i in damaged else each
        for i, each in enumerate(rows())
    ]
    half = len(made) // 2
    return Source(
        build(folder, "small", {"train": [lambda: made[:half], lambda: made[half:]]}), "train"
    )


def tokenize(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Letters as ids, [texts, 6]."""
    ids = np.zeros((len(texts), 6), np.int32)
    for line, text in zip(ids, texts, strict=True):
        line[: len(text)] = [ord(letter) for letter in text]
    return ids, (ids > 0).astype(np.int32)


def text_of(ids: np.ndarray) -> str:
    return "".join(chr(letter) for letter in ids if letter)
