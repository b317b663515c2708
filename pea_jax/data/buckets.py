"""Buckets: image sizes of several aspects, and the assignment of images to them."""

import math
import warnings
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Int, Int64

#: Height and width in pixels, and the probability that a step has that size.
Bucket = tuple[int, int, float]

#: The paper's buckets for SDXL, about 0.4 megapixels each (method.md, "Official training settings";
#: the authors' probabilities sum to 1.0001).
SDXL: tuple[Bucket, ...] = (
    (896, 448, 0.0049),
    (832, 448, 0.0068),
    (768, 512, 0.0807),
    (704, 576, 0.0723),
    (640, 640, 0.2208),
    (576, 704, 0.2068),
    (512, 768, 0.2939),
    (448, 832, 0.0924),
    (448, 896, 0.0215),
)


class BucketWarning(UserWarning):
    """A bucket has no rows, or only a few."""


def largest(buckets: Sequence[Bucket]) -> tuple[int, int]:
    """Height and width of the bucket with the most pixels; of equal ones, the most frequent."""
    height, width, _ = max(buckets, key=lambda bucket: (bucket[0] * bucket[1], bucket[2]))
    return height, width


def bucket_problems(buckets: Sequence[Any]) -> list[str]:
    """Invalid buckets, one line each."""
    problems, seen = [], {}
    for bucket in buckets:
        if (
            not isinstance(bucket, tuple)
            or len(bucket) != 3
            or not all(type(side) is int and side > 0 for side in bucket[:2])
            or not (type(bucket[2]) in (int, float) and 0 < bucket[2] < math.inf)
        ):
            problems.append(f"expected (height, width, probability), all positive, got {bucket!r}")
            continue
        size = bucket[0], bucket[1]
        other = seen.setdefault(Fraction(*size), size)
        if other is not size:
            problems.append(f"expected one bucket of an aspect, got {name(other)} and {name(size)}")
    return problems


def nearest(
    heights: Int[np.ndarray, "N"], widths: Int[np.ndarray, "N"], sizes: Sequence[tuple[int, int]]
) -> Int64[np.ndarray, "N"]:
    """The index in `sizes` of the aspect nearest to each image's, by the ratio of the aspects.

    An image halfway between two sizes goes to the taller one.
    """
    wanted = np.log([height / width for height, width in sizes])
    order = np.argsort(wanted)
    # Rounded, so that a square is exactly as near to 2:3 as to 3:2.
    halfway = ((wanted[order][1:] + wanted[order][:-1]) / 2).round(9)
    aspects = np.log(np.asarray(heights) / np.asarray(widths)).round(9)
    return order[np.searchsorted(halfway, aspects, side="right")]


def allot(
    sides: Mapping[str, tuple[Int[np.ndarray, "_"], Int[np.ndarray, "_"]]],
    buckets: Sequence[Bucket],
) -> tuple[tuple[Bucket, ...], dict[str, Int64[np.ndarray, "_"]]]:
    """Assigns every row to a bucket.

    A step has rows of every part in one size. Buckets without rows of some part are therefore
    dropped with a warning, and their rows go to the nearest remaining aspect.

    Args:
      sides: part -> heights and widths of its images, one or more.
      buckets: one or more.

    Returns:
      The remaining buckets, and for each part the index of every row's bucket.
    """
    shortest = {
        part: int(np.minimum(heights, widths).min())
        for part, (heights, widths) in sides.items()
        if len(buckets) > 1
    }
    if any(side < 1 for side in shortest.values()):
        raise ValueError(f"pictures have sides of at least 1 pixel, got {shortest} of the parts")
    remaining = list(buckets)
    while True:
        sizes = [bucket[:2] for bucket in remaining]
        places = {part: nearest(*each, sizes) for part, each in sides.items()}
        counts = {part: np.bincount(each, minlength=len(sizes)) for part, each in places.items()}
        empty = [place for place in range(len(sizes)) if not all(c[place] for c in counts.values())]
        if not empty:
            return tuple(remaining), places
        # One at a time, fewest rows first, because the moved rows may fill another empty bucket.
        least = min(empty, key=lambda place: (sum(c[place] for c in counts.values()), place))
        lacking = " or ".join(part for part, count in counts.items() if not count[least])
        moved = sum(int(count[least]) for count in counts.values())
        warnings.warn(
            f"bucket {name(sizes[least])} has no {lacking} rows: it is left out, and its "
            f"{moved} other rows go to the nearest aspects that remain",
            BucketWarning,
            stacklevel=2,
        )
        del remaining[least]


def name(size: Sequence[float]) -> str:
    """The readable name of a bucket or a size, e.g. "768x512": height first."""
    return f"{size[0]}x{size[1]}"
