"""Scenes and their pictures: one figure, one colour, one size, one background.

A general figure is known to every language by a word that translates. A motif belongs to one
culture: its name, translated word for word, is not what English calls it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

IMAGE_SIZE = 64

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "ring")
MOTIFS = ("taiji", "lantern", "torii", "matryoshka", "gondola", "panda")

COLOURS = {
    "red": (216, 36, 40),
    "orange": (244, 136, 28),
    "yellow": (250, 222, 44),
    "green": (48, 160, 66),
    "turquoise": (60, 206, 206),
    "blue": (40, 84, 224),
    "purple": (138, 56, 186),
    "pink": (248, 138, 190),
}
BACKGROUNDS = {
    "snow": (246, 248, 252),
    "sand": (224, 204, 164),
    "fog": (150, 156, 166),
    "night": (22, 24, 48),
}
#: Half the figure's extent, in pixels.
SIZES = {"small": 13, "large": 24}

#: The centre of a figure moves at most this many pixels from the middle, on each axis.
MAX_SHIFT = 4

_SUPERSAMPLING = 8


@dataclass(frozen=True)
class Scene:
    """What is in a picture. The oracle writes "none" where it can't tell."""

    shape: str
    colour: str
    size: str
    background: str

    @property
    def native(self) -> bool:
        """True for a motif, which only its own culture's name reaches."""
        return self.shape in MOTIFS


class _Pen:
    """Draws on a supersampled mask in coordinates where the figure spans [-1, 1] on both axes."""

    def __init__(self, radius: float, centre: tuple[float, float]):
        self.scale = radius * _SUPERSAMPLING
        self.centre = tuple(c * _SUPERSAMPLING for c in centre)
        side = IMAGE_SIZE * _SUPERSAMPLING
        self.mask = Image.new("L", (side, side), 0)
        self.draw = ImageDraw.Draw(self.mask)

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self.centre[0] + x * self.scale, self.centre[1] + y * self.scale

    def polygon(self, points, ink: int = 255) -> None:
        self.draw.polygon([self.at(x, y) for x, y in points], fill=ink)

    def ellipse(self, x, y, rx, ry=None, ink: int = 255) -> None:
        ry = rx if ry is None else ry
        self.draw.ellipse([self.at(x - rx, y - ry), self.at(x + rx, y + ry)], fill=ink)

    def box(self, left, top, right, bottom, ink: int = 255) -> None:
        self.draw.rectangle([self.at(left, top), self.at(right, bottom)], fill=ink)


def _circle(pen):
    pen.ellipse(0, 0, 1)


def _square(pen):
    pen.box(-0.88, -0.88, 0.88, 0.88)


def _triangle(pen):
    pen.polygon([(0, -1), (1, 0.86), (-1, 0.86)])


def _star(pen):
    radii = (1.08, 0.44)
    points = [
        (radii[i % 2] * sin(pi * i / 5), 0.06 - radii[i % 2] * cos(pi * i / 5)) for i in range(10)
    ]
    pen.polygon(points)


def _heart(pen):
    turns = [2 * pi * i / 60 for i in range(60)]
    pen.polygon(
        [
            (
                sin(t) ** 3,
                -(13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)) / 15 - 0.12,
            )
            for t in turns
        ]
    )


def _cross(pen):
    pen.box(-1, -0.32, 1, 0.32)
    pen.box(-0.32, -1, 0.32, 1)


def _diamond(pen):
    pen.polygon([(0, -1), (0.68, 0), (0, 1), (-0.68, 0)])


def _ring(pen):
    pen.ellipse(0, 0, 1)
    pen.ellipse(0, 0, 0.56, ink=0)


def _taiji(pen):
    pen.ellipse(0, 0, 1)
    half = _Pen(pen.scale / _SUPERSAMPLING, tuple(c / _SUPERSAMPLING for c in pen.centre))
    half.ellipse(0, 0, 0.86)
    half.box(-1, -1, 0, 1, ink=0)
    half.ellipse(0, -0.43, 0.43, ink=255)
    half.ellipse(0, 0.43, 0.43, ink=0)
    half.ellipse(0, -0.43, 0.16, ink=0)
    half.ellipse(0, 0.43, 0.16, ink=255)
    pen.mask.paste(0, mask=half.mask)


def _lantern(pen):
    pen.box(-0.36, -0.86, 0.36, -0.66)
    pen.box(-0.06, -1.0, 0.06, -0.8)
    pen.ellipse(0, -0.1, 0.92, 0.56)
    pen.box(-0.36, 0.46, 0.36, 0.6)
    for x in (-0.22, 0.0, 0.22):
        pen.box(x - 0.06, 0.6, x + 0.06, 1.0)
    for x in (-0.4, 0.4):
        pen.box(x - 0.07, -0.52, x + 0.07, 0.32, ink=0)


def _torii(pen):
    pen.polygon([(-1.0, -0.95), (0, -0.78), (1.0, -0.95), (0.92, -0.6), (-0.92, -0.6)])
    pen.box(-0.8, -0.36, 0.8, -0.12)
    pen.box(-0.62, -0.7, -0.36, 1.0)
    pen.box(0.36, -0.7, 0.62, 1.0)


def _matryoshka(pen):
    pen.ellipse(0, -0.5, 0.5)
    pen.ellipse(0, 0.32, 0.72, 0.68)
    pen.ellipse(0, -0.46, 0.3, ink=0)
    pen.ellipse(0, 0.4, 0.26, 0.32, ink=0)


def _gondola(pen):
    pen.ellipse(0, -0.3, 1.0, 0.95)
    pen.ellipse(0, -0.62, 1.12, 0.9, ink=0)
    pen.box(-0.1, -0.4, 0.14, 0.4)
    pen.ellipse(0.02, -0.55, 0.2)
    pen.polygon([(0.28, -0.95), (0.38, -0.92), (-0.3, 0.62), (-0.42, 0.58)])


def _panda(pen):
    pen.ellipse(-0.68, -0.62, 0.34)
    pen.ellipse(0.68, -0.62, 0.34)
    pen.ellipse(0, 0.1, 0.92, 0.84)
    pen.ellipse(-0.36, 0.0, 0.2, 0.26, ink=0)
    pen.ellipse(0.36, 0.0, 0.2, 0.26, ink=0)
    pen.ellipse(0, 0.5, 0.18, 0.13, ink=0)


_DRAW: dict[str, Callable[[_Pen], None]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "diamond": _diamond,
    "ring": _ring,
    "taiji": _taiji,
    "lantern": _lantern,
    "torii": _torii,
    "matryoshka": _matryoshka,
    "gondola": _gondola,
    "panda": _panda,
}


def coverage(shape: str, radius: float, centre: tuple[float, float]) -> np.ndarray:
    """How much of each pixel a figure covers: float32 [64, 64] in 0..1.

    Args:
      shape: one of ``SHAPES`` or ``MOTIFS``.
      radius: half the figure's extent, pixels.
      centre: (x, y) of its middle, pixels.
    """
    pen = _Pen(radius, centre)
    _DRAW[shape](pen)
    small = pen.mask.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / 255


def render(scene: Scene, dx: float = 0.0, dy: float = 0.0) -> np.ndarray:
    """The picture of a scene, its figure moved by (dx, dy) pixels: uint8 [64, 64, 3]."""
    if max(abs(dx), abs(dy)) > MAX_SHIFT:
        raise ValueError(f"a figure moves at most {MAX_SHIFT} pixels, got dx={dx}, dy={dy}")
    middle = IMAGE_SIZE / 2
    alpha = coverage(scene.shape, SIZES[scene.size], (middle + dx, middle + dy))[..., None]
    figure = np.array(COLOURS[scene.colour], np.float32)
    ground = np.array(BACKGROUNDS[scene.background], np.float32)
    return np.round(alpha * figure + (1 - alpha) * ground).astype(np.uint8)
