"""Latents in place of pictures: what a VAE makes of every row, kept as a data set of its own.

    DATA_DIR/NAME_latents_HASH/1.0.0/
        ...-train.array_record-00000-of-00004   the rows, in the order of the pixel set
        index-train.npy, report.json            as a set of pictures has them
        recipe.json                             the `Recipe`, and the digest of the pixel set
        dataset_info.json                       with it the set is whole

Training finds the set again from its config alone, and reads no picture.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float

from pea_jax.data import buckets, images, paths, schema
from pea_jax.data.read.plan import CENTRE
from pea_jax.data.read.source import DatasetError, Source
from pea_jax.data.write import recipe as recipes
from pea_jax.runtime import storage
from pea_jax.runtime.storage import AnyPath

#: What moments may be stored in; float16 is half the size, and keeps 11 bits of each value.
DTYPES = ("float32", "float16")

#: Of the pixel set that a set of latents was made of, beside the fields of its `Recipe`.
_PIXELS = "pixels"

#: How to make what is not there.
_COMMAND = "pea-jax prepare --latents"


@dataclass(frozen=True)
class Recipe:
    """What latents are made of. Two sets of one recipe and one pixel set are the same.

    Attributes:
      dataset: name of the pixel set.
      split: of it.
      languages: whose rows are in, sorted.
      parts: "native", "parallel" or both, sorted: the kinds of rows that are in.
      sizes: height and width of the pictures that were encoded, sorted; a row has the one that
        training would give it (`buckets.allot`).
      crop: of the pictures.
      flips: whether the mirrored pictures are there too.
      dtype: of the stored moments, one of `DTYPES`.
      vae: `weights.base.hash_vae` of the VAE.
      compute: the dtype that the VAE computes in, such as "bfloat16".

    Raises:
      ValueError: names every value that cannot be.
    """

    dataset: str
    split: str
    languages: tuple[str, ...]
    parts: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    crop: str
    flips: bool
    dtype: str
    vae: str
    compute: str

    def __post_init__(self):
        """Raise ValueError, naming every field that cannot be."""
        problems = []
        if self.dtype not in DTYPES:
            problems.append(f"expected a dtype of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.crop != CENTRE:
            problems.append(
                f"a {self.crop} crop is another picture at every step, and cannot be kept: "
                "expected a centre crop"
            )
        if problems:
            raise ValueError(f"latents: {'; '.join(problems)}")

    @property
    def name(self) -> str:
        """Of the set: that of the pixel set, and ten hex digits of all of the recipe."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return f"{self.dataset}_latents_{hashlib.sha256(text.encode()).hexdigest()[:10]}"


@dataclass(frozen=True)
class LatentRow:
    """A row of a pixel set (`schema.Row`) with moments in place of its picture.

    Attributes:
      key: of the pixel set's row, like all columns up to `width`.
      caption: in `language`.
      caption_en: its English counterpart.
      language: of `caption`.
      native: the kind of row.
      height: of the whole picture, pixels.
      width: of the whole picture, pixels.
      size: height and width of the crop that was encoded, pixels.
      crop: its top and left in the picture that was resized to cover `size`.
      moments: mean and log variance of the VAE's posterior, neither sampled nor scaled.
      mirrored: of the picture mirrored left to right and cropped; None where that isn't kept.
    """

    key: str
    caption: str
    caption_en: str
    language: str
    native: bool
    height: int
    width: int
    size: tuple[int, int]
    crop: tuple[int, int]
    moments: Float[np.ndarray, "2 h w C"]
    mirrored: Float[np.ndarray, "2 h w C"] | None


_TEXTS = ("key", "caption", "caption_en", "language")
_SIZE, _CROP = ("target_height", "target_width"), ("crop_top", "crop_left")
_SHAPE = ("latent_height", "latent_width", "latent_channels")


def form(dtype: str) -> schema.Form:
    """How `LatentRow`s are stored, their moments in `dtype`."""
    return schema.Form(_features, functools.partial(_to_example, dtype), _problem)


def _features() -> tfds.features.FeaturesDict:
    """Moments are the bytes of an array [2, h, w, C], little-endian, in C order."""
    numbers = ("height", "width", *_SIZE, *_CROP, *_SHAPE)
    return tfds.features.FeaturesDict(
        {
            **{name: tfds.features.Text() for name in _TEXTS},
            **{name: tfds.features.Scalar(np.int32) for name in numbers},
            "native": tfds.features.Scalar(np.bool_),
            "moments": tfds.features.Scalar(np.bytes_),
            "mirrored": tfds.features.Scalar(np.bytes_),
        }
    )


def _problem(row: LatentRow) -> None:
    """The pixel set has good rows alone."""
    del row


def _to_example(dtype: str, row: LatentRow) -> dict[str, object]:
    def stored(moments: np.ndarray | None) -> bytes:
        if moments is None:
            return b""
        with np.errstate(over="ignore"):  # told below
            array = np.ascontiguousarray(moments, np.dtype(dtype).newbyteorder("<"))
        if not np.isfinite(array).all():
            raise ValueError(f"row {row.key}: the VAE gave moments that are not finite in {dtype}")
        return array.tobytes()

    return {
        **{name: getattr(row, name) for name in (*_TEXTS, "native", "height", "width")},
        **dict(zip(_SIZE, row.size, strict=True)),
        **dict(zip(_CROP, row.crop, strict=True)),
        **dict(zip(_SHAPE, row.moments.shape[1:], strict=True)),
        "moments": stored(row.moments),
        "mirrored": stored(row.mirrored),
    }


class LatentSource(Source):
    """A split of a set of latents.

    Attributes:
      recipe: what it was made of.
      pixels: `Source.digest` of the pixel set.
    """

    _decoders: Mapping[str, Any] = {}

    def _open(self) -> None:
        super()._open()
        told = recipes.read(paths.recipe_file(self.folder)) or {}
        wanted = {field.name for field in dataclasses.fields(Recipe)} | {_PIXELS}
        if told.keys() != wanted:
            raise DatasetError(f"{self.folder} holds no latents of this version of pea_jax")
        self.pixels = told.pop(_PIXELS)
        lists = {name: tuple(told[name]) for name in ("languages", "parts")}
        sizes = tuple((height, width) for height, width in told["sizes"])
        self.recipe = Recipe(**{**told, **lists, "sizes": sizes})

    def _from_example(self, example: Mapping[str, Any]) -> LatentRow:
        """Moments are float32, whatever they are stored in."""
        shape = [2, *(int(example[name]) for name in _SHAPE)]
        dtype = np.dtype(self.recipe.dtype).newbyteorder("<")

        def array(name: str) -> np.ndarray:
            return np.frombuffer(example[name], dtype).reshape(shape).astype(np.float32)

        return LatentRow(
            **{name: example[name].decode() for name in _TEXTS},
            **{name: int(example[name]) for name in ("height", "width")},
            native=bool(example["native"]),
            size=tuple(int(example[name]) for name in _SIZE),
            crop=tuple(int(example[name]) for name in _CROP),
            moments=array("moments"),
            mirrored=array("mirrored") if self.recipe.flips else None,
        )

    def picture(
        self, row: LatentRow, size: tuple[int, int], view: images.View = images.CENTRE
    ) -> dict[str, np.ndarray]:
        """Its "moments" in place of pixels.

        Raises:
          DatasetError: what was encoded is not what is to be seen.
        """
        moments = row.mirrored if view.flipped else row.moments
        kept = dataclasses.replace(view, flipped=False) == images.CENTRE and moments is not None
        if row.size != size or not kept:
            raise DatasetError(
                f"row {row.key} of {self.folder}: expected latents of {buckets.name(size)} pixels, "
                f"{view}, got {buckets.name(row.size)}, {images.CENTRE}"
                f"{'' if row.mirrored is None else ' and its mirror image'}"
            )
        time_ids = np.array([row.height, row.width, *row.crop, *row.size], np.int32)
        return {"moments": moments, "time_ids": time_ids}


def recipe_file(recipe: Recipe, pixels: str) -> dict[str, Any]:
    """What `builder.build` keeps of a recipe, with the pixel set's digest."""
    return {**dataclasses.asdict(recipe), _PIXELS: pixels}


def find(data_dir: AnyPath | str, wanted: Recipe, pixels: Source | None) -> LatentSource:
    """The set of latents that a run is to read.

    Args:
      data_dir: holds the sets.
      wanted: what the run would make.
      pixels: the pixel set; None where it is not there.

    Raises:
      DatasetError: the set is not there, not whole, or of other pixels; it says what is there.
    """
    folder = paths.folder_of(data_dir, wanted.name)
    if not paths.is_built(folder):
        raise DatasetError(_missing(data_dir, wanted))
    source = LatentSource(folder, wanted.split)
    told = _differences(source, wanted, source.pixels if pixels is None else pixels.digest)
    if told:
        raise DatasetError(
            f"{folder}: {told}: remove it, and make it again with {_COMMAND}, or give the run what "
            "it was made of"
        )
    return source


def _missing(data_dir: AnyPath | str, wanted: Recipe) -> str:
    """That there is no such set, and what is there in its place."""
    folder = paths.folder_of(data_dir, wanted.name)
    if paths.unfinished(folder):
        return f"{folder} is not finished: go on with {_COMMAND}"
    others = []
    for top in sorted(storage.as_path(data_dir).glob(f"{wanted.dataset}_latents_*")):
        other = paths.folder_of(data_dir, top.name)
        if paths.is_built(other):
            source = LatentSource(other, wanted.split)
            others.append(f"{top.name}: {_differences(source, wanted, source.pixels)}")
    there = f" (there are {'; '.join(others)})" if others else ""
    return (
        f"no latents of {wanted.dataset} for this run in {data_dir}{there}: make {wanted.name} "
        f"with {_COMMAND}"
    )


def _differences(source: LatentSource, wanted: Recipe, pixels: str) -> str:
    """Of a set from what is wanted, in one line; "" if there are none."""
    there = recipe_file(source.recipe, source.pixels)
    return recipes.difference(recipes.as_json(there), recipes.as_json(recipe_file(wanted, pixels)))
