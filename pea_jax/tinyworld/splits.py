"""The training and test splits: one scene in eight is held out, evenly over all attributes."""

from itertools import product

from pea_jax.tinyworld.world import BACKGROUNDS, COLOURS, MOTIFS, SHAPES, SIZES, Scene


def scenes(split: str, native: bool) -> tuple[Scene, ...]:
    """All scenes of a split, in a fixed order.

    The test split has 64 of the 512 general combinations and 48 of the 384 native ones. Every pair
    of attribute values of a test scene also occurs in training. No test combination does.

    Args:
      split: "train" or "test".
      native: the motifs, or the general shapes.
    """
    if split not in ("train", "test"):
        raise ValueError(f'split is "train" or "test", got {split!r}')
    chosen = []
    for (i, shape), (j, colour), (k, size), (m, ground) in product(
        enumerate(MOTIFS if native else SHAPES),
        enumerate(COLOURS),
        enumerate(SIZES),
        enumerate(BACKGROUNDS),
    ):
        held_out = (i + j + 4 * k + m) % 8 == 0
        if held_out == (split == "test"):
            chosen.append(Scene(shape, colour, size, ground))
    return tuple(chosen)
