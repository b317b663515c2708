"""The sizes of pictures that SDXL was distilled at."""

from collections.abc import Mapping

#: (height, width) in pixels -> how often the authors drew it, about 0.4 megapixels each
#: (method.md, "Official training settings"; their probabilities sum to 1.0001).
SDXL: Mapping[tuple[int, int], float] = {
    (896, 448): 0.0049,
    (832, 448): 0.0068,
    (768, 512): 0.0807,
    (704, 576): 0.0723,
    (640, 640): 0.2208,
    (576, 704): 0.2068,
    (512, 768): 0.2939,
    (448, 832): 0.0924,
    (448, 896): 0.0215,
}


def largest(buckets: Mapping[tuple[int, int], float]) -> tuple[int, int]:
    """The bucket with the most pixels, the most frequent of equals."""
    return max(buckets, key=lambda size: (size[0] * size[1], buckets[size]))
