"""Scores of images against what was asked for."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from pea_jax.tinyworld import oracle
from pea_jax.tinyworld.world import Scene

ATTRIBUTES = ("shape", "colour", "size", "background")


def scene_accuracy(
    images: UInt8[np.ndarray, "N 64 64 3"], asked: Sequence[Scene]
) -> dict[str, float]:
    """The share of images in which tinyworld's oracle reads what was asked for.

    Args:
      images: uint8 [N, 64, 64, 3].
      asked: the scene that each should show.

    Returns:
      Shares in 0..1: "all" attributes right at once, then "shape", "colour", "size", "background".

    Raises:
      ValueError: no images, or not one scene an image.
    """
    if len(images) == 0 or len(images) != len(asked):
        raise ValueError(f"expected one scene an image, got {len(asked)} and {len(images)} images")
    seen = [oracle.read(image) for image in images]
    right = np.array(
        [
            [getattr(a, name) == getattr(b, name) for name in ATTRIBUTES]
            for a, b in zip(asked, seen, strict=True)
        ]
    )
    shares = dict(zip(ATTRIBUTES, right.mean(axis=0).tolist(), strict=True))
    return {"all": float(right.all(axis=1).mean()), **shares}
