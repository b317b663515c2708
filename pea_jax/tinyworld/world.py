"""Scenes and their images: one figure, one colour, one size, one background.

The names of general figures translate word for word. A motif belongs to one culture, and the
word-for-word translation of its name differs from its English name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

IMAGE_SIZE = 64
CENTRE = IMAGE_SIZE / 2

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
#: Half of the figure's extent, pixels.
SIZES = {"small": 13, "large": 24}

#: Maximum shift of a figure from the image centre, pixels per axis.
MAX_SHIFT = 4

_SUPERSAMPLING = 8


@dataclass(frozen=True)
class Scene:
    """The attributes of an image; "none" for an attribute that the oracle cannot read."""

    shape: str
    colour: str
    size: str
    background: str

    @property
    def native(self) -> bool:
        """Whether the figure is a motif."""
        return self.shape in MOTIFS


#: A primitive of `ImageDraw`: its method, points and ink. Figures span [-1, 1] on both axes.
_Stroke = tuple[str, Sequence[tuple[float, float]], int]


def _polygon(points: Sequence[tuple[float, float]]) -> _Stroke:
    return "polygon", points, 255


def _ellipse(x: float, y: float, rx: float, ry: float | None = None, ink: int = 255) -> _Stroke:
    ry = rx if ry is None else ry
    return "ellipse", [(x - rx, y - ry), (x + rx, y + ry)], ink


def _box(left: float, top: float, right: float, bottom: float, ink: int = 255) -> _Stroke:
    return "rectangle", [(left, top), (right, bottom)], ink


def _star() -> list[tuple[float, float]]:
    radii = [(1.08, 0.44)[i % 2] for i in range(10)]
    return [(r * sin(pi * i / 5), 0.06 - r * cos(pi * i / 5)) for i, r in enumerate(radii)]


def _heart() -> list[tuple[float, float]]:
    turns = [2 * pi * i / 60 for i in range(60)]
    heights = [13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t) for t in turns]
    return [(sin(t) ** 3, -height / 15 - 0.12) for t, height in zip(turns, heights, strict=True)]


_FIGURES: dict[str, list[_Stroke]] = {
    "circle": [_ellipse(0, 0, 1)],
    "square": [_box(-0.88, -0.88, 0.88, 0.88)],
    "triangle": [_polygon([(0, -1), (1, 0.86), (-1, 0.86)])],
    "star": [_polygon(_star())],
    "heart": [_polygon(_heart())],
    "cross": [_box(-1, -0.32, 1, 0.32), _box(-0.32, -1, 0.32, 1)],
    "diamond": [_polygon([(0, -1), (0.68, 0), (0, 1), (-0.68, 0)])],
    "ring": [_ellipse(0, 0, 1), _ellipse(0, 0, 0.56, ink=0)],
    "taiji": [_ellipse(0, 0, 1)],
    "lantern": [
        _box(-0.36, -0.86, 0.36, -0.66),
        _box(-0.06, -1.0, 0.06, -0.8),
        _ellipse(0, -0.1, 0.92, 0.56),
        _box(-0.36, 0.46, 0.36, 0.6),
        *(_box(x - 0.06, 0.6, x + 0.06, 1.0) for x in (-0.22, 0.0, 0.22)),
        *(_box(x - 0.07, -0.52, x + 0.07, 0.32, ink=0) for x in (-0.4, 0.4)),
    ],
    "torii": [
        _polygon([(-1.0, -0.95), (0, -0.78), (1.0, -0.95), (0.92, -0.6), (-0.92, -0.6)]),
        _box(-0.8, -0.36, 0.8, -0.12),
        _box(-0.62, -0.7, -0.36, 1.0),
        _box(0.36, -0.7, 0.62, 1.0),
    ],
    "matryoshka": [
        _ellipse(0, -0.5, 0.5),
        _ellipse(0, 0.32, 0.72, 0.68),
        _ellipse(0, -0.46, 0.3, ink=0),
        _ellipse(0, 0.4, 0.26, 0.32, ink=0),
    ],
    "gondola": [
        _ellipse(0, -0.3, 1.0, 0.95),
        _ellipse(0, -0.62, 1.12, 0.9, ink=0),
        _box(-0.1, -0.4, 0.14, 0.4),
        _ellipse(0.02, -0.55, 0.2),
        _polygon([(0.28, -0.95), (0.38, -0.92), (-0.3, 0.62), (-0.42, 0.58)]),
    ],
    "panda": [
        _ellipse(-0.68, -0.62, 0.34),
        _ellipse(0.68, -0.62, 0.34),
        _ellipse(0, 0.1, 0.92, 0.84),
        _ellipse(-0.36, 0.0, 0.2, 0.26, ink=0),
        _ellipse(0.36, 0.0, 0.2, 0.26, ink=0),
        _ellipse(0, 0.5, 0.18, 0.13, ink=0),
    ],
}

#: Strokes of a second mask, which is cut out of the figure.
_CUT_OUTS: dict[str, list[_Stroke]] = {
    "taiji": [
        _ellipse(0, 0, 0.86),
        _box(-1, -1, 0, 1, ink=0),
        _ellipse(0, -0.43, 0.43),
        _ellipse(0, 0.43, 0.43, ink=0),
        _ellipse(0, -0.43, 0.16, ink=0),
        _ellipse(0, 0.43, 0.16),
    ],
}


def _mask(strokes: Sequence[_Stroke], radius: float, centre: tuple[float, float]) -> Image.Image:
    """A supersampled mask of a figure."""
    side, scale = IMAGE_SIZE * _SUPERSAMPLING, radius * _SUPERSAMPLING
    left, top = (c * _SUPERSAMPLING for c in centre)
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    for method, points, ink in strokes:
        getattr(draw, method)([(left + x * scale, top + y * scale) for x, y in points], fill=ink)
    return mask


def coverage(
    shape: str, radius: float, centre: tuple[float, float] = (CENTRE, CENTRE)
) -> np.ndarray:
    """The fraction of each pixel that a figure covers: float32 [64, 64] in 0..1.

    Args:
      shape: one of ``SHAPES`` or ``MOTIFS``.
      radius: half of the figure's extent, pixels.
      centre: (x, y) of its centre, pixels.
    """
    mask = _mask(_FIGURES[shape], radius, centre)
    if shape in _CUT_OUTS:
        mask.paste(0, mask=_mask(_CUT_OUTS[shape], radius, centre))
    small = mask.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / 255


def render(scene: Scene, dx: float = 0.0, dy: float = 0.0) -> np.ndarray:
    """The image of a scene with its figure moved by (dx, dy) pixels: uint8 [64, 64, 3]."""
    if max(abs(dx), abs(dy)) > MAX_SHIFT:
        raise ValueError(f"a figure moves at most {MAX_SHIFT} pixels, got dx={dx}, dy={dy}")
    alpha = coverage(scene.shape, SIZES[scene.size], (CENTRE + dx, CENTRE + dy))[..., None]
    figure = np.array(COLOURS[scene.colour], np.float32)
    ground = np.array(BACKGROUNDS[scene.background], np.float32)
    return np.round(alpha * figure + (1 - alpha) * ground).astype(np.uint8)
