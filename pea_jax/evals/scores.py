"""Scores of images against their prompts; a new score is a row of SCORERS."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from pea_jax.tinyworld import oracle
from pea_jax.tinyworld.world import Scene

ATTRIBUTES = ("shape", "colour", "size", "background")


def scene_accuracy(
    images: UInt8[np.ndarray, "N 64 64 3"], scenes: Sequence[Scene]
) -> dict[str, float]:
    """The share of images in which tinyworld's oracle reads the expected scene.

    Args:
      images: uint8 [N, 64, 64, 3].
      scenes: the scene that each image should show.

    Returns:
      Shares in 0..1: "all" attributes right at once, then "shape", "colour", "size", "background".

    Raises:
      ValueError: no images, or not one scene per image.
    """
    if len(images) == 0 or len(images) != len(scenes):
        raise ValueError(f"expected one scene an image, got {len(scenes)} and {len(images)} images")
    read = [oracle.read(image) for image in images]
    right = np.array(
        [
            [getattr(a, name) == getattr(b, name) for name in ATTRIBUTES]
            for a, b in zip(scenes, read, strict=True)
        ]
    )
    shares = dict(zip(ATTRIBUTES, right.mean(axis=0).tolist(), strict=True))
    return {"all": float(right.all(axis=1).mean()), **shares}


@dataclasses.dataclass(frozen=True)
class Scorer:
    """A way to score images.

    Attributes:
      names: of its scores, in the order of the printed columns.
      score: (images uint8 [N, H, W, 3], the scene and the English caption of each) -> scores by
        name.
    """

    names: tuple[str, ...]
    score: Callable[
        [UInt8[np.ndarray, "N H W 3"], Sequence[Scene], Sequence[str]], dict[str, float]
    ]


#: Each row scores every evaluation.
SCORERS = {
    "scene_accuracy": Scorer(
        ("all", *ATTRIBUTES), lambda images, scenes, captions: scene_accuracy(images, scenes)
    )
}
