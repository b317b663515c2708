"""Which scenes are for training and which are held out: one in eight, every attribute evenly."""

from itertools import product

from pea_jax.tinyworld.world import BACKGROUNDS, COLOURS, MOTIFS, SHAPES, SIZES, Scene


def scenes(split: str, native: bool) -> tuple[Scene, ...]:
    """All scenes of a split, in a fixed order.

    Held out ("test") are 64 of the 512 general combinations and 48 of the 384 native ones. Every
    pair of attribute values that occurs in a held-out scene also occurs in training, the whole
    combination never does.

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
