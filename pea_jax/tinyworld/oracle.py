"""The oracle: reads a scene from pixels by colour distance and template matching, untrained."""

from functools import cache
from itertools import product

import numpy as np

from pea_jax.tinyworld.world import (
    BACKGROUNDS,
    CENTRE,
    COLOURS,
    IMAGE_SIZE,
    MOTIFS,
    SHAPES,
    SIZES,
    Scene,
    coverage,
)

#: Minimum overlap (soft intersection over union) of a figure with its template. True renders reach
#: 0.9, and blobs stay below.
MIN_OVERLAP = 0.6

#: Maximum distance in RGB (0..255 each) of a mean colour from a named colour.
MAX_COLOUR_DISTANCE = 60.0

_RADII = (11.5, 12.25, 13.0, 13.75, 14.5, 22.0, 23.0, 24.0, 25.0)
_TEMPLATE_SHIFT = 2


def _nearest(colour: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    names = list(palette)
    distances = np.linalg.norm(np.array([palette[n] for n in names]) - colour, axis=1)
    best = int(distances.argmin())
    return names[best] if distances[best] <= MAX_COLOUR_DISTANCE else "none"


@cache
def _templates() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, radii and coverage [K, 64*64] of every shape at every radius, in the centre."""
    figures = list(product(SHAPES + MOTIFS, _RADII))
    masks = np.stack([coverage(*figure).ravel() for figure in figures])
    return [shape for shape, _ in figures], np.array([radius for _, radius in figures]), masks


def _extent_middle(alpha: np.ndarray) -> tuple[float, float]:
    """The centre (x, y) of the figure's bounding box, pixels."""
    rows = np.flatnonzero((alpha > 0.5).any(axis=1))
    columns = np.flatnonzero((alpha > 0.5).any(axis=0))
    return (columns[0] + columns[-1] + 1) / 2, (rows[0] + rows[-1] + 1) / 2


def _match(alpha: np.ndarray) -> tuple[str, str]:
    """Shape and size of the best template over a few whole-pixel shifts."""
    names, radii, masks = _templates()
    x, y = _extent_middle(alpha)
    base = (round(CENTRE - y), round(CENTRE - x))
    span = range(-_TEMPLATE_SHIFT, _TEMPLATE_SHIFT + 1)
    shifted = np.stack(
        [np.roll(alpha, (base[0] + v, base[1] + h), (0, 1)).ravel() for v in span for h in span]
    )
    # Soft intersection over union with min(a, b) ~ a * b, exact for hard masks.
    intersection = masks @ shifted.T
    union = (masks**2).sum(1)[:, None] + (shifted**2).sum(1)[None] - intersection
    overlap = (intersection / union).max(axis=1)
    best = int(overlap.argmax())
    if overlap[best] < MIN_OVERLAP:
        return "none", "none"
    size = min(SIZES, key=lambda s: abs(SIZES[s] - radii[best]))
    return names[best], size


def read(image: np.ndarray) -> Scene:
    """The scene in an image; "none" for each unreadable attribute.

    Args:
      image: uint8 [64, 64, 3].
    """
    if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"expected uint8 [{IMAGE_SIZE}, {IMAGE_SIZE}, 3], got {image.dtype} {image.shape}"
        )
    pixels = image.astype(np.float32)
    rim = (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:])
    ground = np.median(np.concatenate([strip.reshape(-1, 3) for strip in rim]), axis=0)
    background = _nearest(ground, BACKGROUNDS)

    distance = np.linalg.norm(pixels - ground, axis=-1)
    core = distance >= 0.75 * np.quantile(distance, 0.99)
    if distance.max() < MAX_COLOUR_DISTANCE or core.sum() < 20:
        return Scene("none", "none", "none", background)
    figure = np.median(pixels[core], axis=0)
    direction = figure - ground
    alpha = np.clip((pixels - ground) @ direction / (direction @ direction), 0, 1)
    shape, size = _match(alpha)
    return Scene(shape, _nearest(figure, COLOURS), size, background)
