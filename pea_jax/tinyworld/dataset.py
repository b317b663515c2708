"""The tinyworld data set: several images of every scene, with captions in five languages."""

import functools
import hashlib
import io
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from pea_jax.data.schema import Row
from pea_jax.data.write import builder
from pea_jax.runtime.storage import AnyPath
from pea_jax.tinyworld import captions, world
from pea_jax.tinyworld.splits import scenes

#: The languages to teach: all except English, which the tiny Stable Diffusion knows.
LANGUAGES = tuple(language for language in captions.LANGUAGES if language != "en")

#: Images per scene, each with another figure position and caption template.
VARIANTS = {"train": 8, "test": 1}


def _placements(split: str, native: bool) -> Iterator[tuple[world.Scene, int, int, int]]:
    """Every scene and variant with the shift of its figure: (scene, variant, dx, dy)."""
    rng = np.random.default_rng([("train", "test").index(split), native])
    for scene in scenes(split, native):
        for variant in range(VARIANTS[split]):
            dx, dy = rng.integers(-world.MAX_SHIFT, world.MAX_SHIFT + 1, 2)
            yield scene, variant, int(dx), int(dy)


def _texts(split: str, scene: world.Scene, variant: int, language: str) -> tuple[str, str, str]:
    """Key, caption and English caption of a row; "" is the English caption of a motif."""
    figure = "-".join((scene.shape, scene.colour, scene.size, scene.background))
    english = "" if scene.native else captions.caption(scene, "en", variant)
    return (
        f"{split}/{language}/{figure}/{variant}",
        captions.caption(scene, language, variant),
        english,
    )


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def rows(split: str, native: bool, languages: Sequence[str] = LANGUAGES) -> Iterator[Row]:
    """The rows of a split, in a fixed order: each image once in every language.

    General scenes make parallel rows, with an English caption by the same template. Motifs make
    native rows without an English caption.

    Args:
      split: "train" or "test"; no scene is in both.
      native: the motifs, or the general shapes.
      languages: of the captions, without English.
    """
    for scene, variant, dx, dy in _placements(split, native):
        image = _png(world.render(scene, dx, dy))
        for language in languages:
            key, caption, english = _texts(split, scene, variant, language)
            yield Row(
                key=key,
                image=image,
                caption=caption,
                caption_en=english,
                language=language,
                native=scene.native,
                height=world.IMAGE_SIZE,
                width=world.IMAGE_SIZE,
            )


@functools.cache
def fingerprint() -> str:
    """Ten hex digits that change with any caption, scene of a split, or figure."""
    digest = hashlib.sha256()
    for split in VARIANTS:
        for native in (False, True):
            for scene, variant, dx, dy in _placements(split, native):
                digest.update(repr((dx, dy)).encode())
                for language in LANGUAGES:
                    digest.update("\n".join(_texts(split, scene, variant, language)).encode())
    for shape in (*world.SHAPES, *world.MOTIFS):
        for radius in world.SIZES.values():
            digest.update(world.coverage(shape, radius).tobytes())
    digest.update(repr((world.COLOURS, world.BACKGROUNDS)).encode())
    return digest.hexdigest()[:10]


def name() -> str:
    """The name of the set; it contains the fingerprint."""
    return f"tinyworld_{fingerprint()}"


def prepare(data_dir: AnyPath | str) -> AnyPath:
    """The folder of the tinyworld set in `data_dir`; builds a missing set."""
    splits = {
        split: [functools.partial(rows, split, native) for native in (False, True)]
        for split in VARIANTS
    }
    return builder.build(
        data_dir,
        name(),
        splits,
        description="64x64 scenes with captions in five languages; see pea_jax.tinyworld.",
    )
