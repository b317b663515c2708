"""Cached latents: a data set with the VAE's moments of every row in place of its image.

    DATA_DIR/NAME_latents_HASH/1.0.0/
        ...-train.array_record-00000-of-00004   the rows, in the order of the pixel set
        index-train.npy, report.json            as in a set of images
        recipe.json                             the `LatentRecipe`, and the digest of the pixel set
        dataset_info.json                       written last; marks the set as complete

Training finds the set from its config alone, and reads no image.
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

#: Dtypes of stored moments; float16 halves the size and keeps 11 bits of each value.
DTYPES = ("float32", "float16")

#: Field of recipe.json with the digest of the pixel set, besides the fields of `LatentRecipe`.
_PIXELS = "pixels"

#: The command that makes a missing set.
_COMMAND = "pea-jax prepare --latents"


@dataclass(frozen=True)
class LatentRecipe:
    """The settings of a set of latents, which with the pixel set determine its content.

    Attributes:
      dataset: name of the pixel set.
      split: of the pixel set.
      languages: of the rows, sorted.
      parts: kinds of rows: "native", "parallel" or both, sorted.
      sizes: heights and widths of the encoded images, sorted; each row has the size that it has in
        training (`buckets.allot`).
      crop: of the images.
      flips: whether the latents of mirrored images are stored too.
      dtype: of the stored moments, one of `DTYPES`.
      vae: `weights.bases.hash_vae` of the VAE.
      compute: the VAE's compute dtype, such as "bfloat16".

    Raises:
      ValueError: names all unsupported values.
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
        """Name of the set: the pixel set's name and ten hex digits of the recipe's hash."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return f"{self.dataset}_latents_{hashlib.sha256(text.encode()).hexdigest()[:10]}"


@dataclass(frozen=True)
class LatentRow(schema.AnyRow):
    """A row of a pixel set (`schema.Row`) with moments in place of its image.

    Attributes:
      size: height and width of the encoded crop, pixels.
      crop: top and left of the crop in the image that is resized to cover `size`.
      moments: mean and log variance of the VAE's posterior, neither sampled nor scaled.
      mirrored: moments of the image mirrored left to right and cropped, or None.
    """

    size: tuple[int, int]
    crop: tuple[int, int]
    moments: Float[np.ndarray, "2 h w C"]
    mirrored: Float[np.ndarray, "2 h w C"] | None


_SIZE, _CROP = ("target_height", "target_width"), ("crop_top", "crop_left")
_SHAPE = ("latent_height", "latent_width", "latent_channels")


def row_format(dtype: str) -> schema.RowFormat:
    """The storage format of `LatentRow`s with moments in `dtype`."""
    return schema.RowFormat(_features, functools.partial(_to_example, dtype))


def _features() -> tfds.features.FeaturesDict:
    """Moments are stored as bytes of an array [2, h, w, C], little-endian, in C order."""
    return tfds.features.FeaturesDict(
        {
            **schema.shared_features(),
            **{name: tfds.features.Scalar(np.int32) for name in (*_SIZE, *_CROP, *_SHAPE)},
            "moments": tfds.features.Scalar(np.bytes_),
            "mirrored": tfds.features.Scalar(np.bytes_),
        }
    )


def _to_example(dtype: str, row: LatentRow) -> dict[str, object]:
    def stored(moments: np.ndarray | None) -> bytes:
        if moments is None:
            return b""
        with np.errstate(over="ignore"):  # raises below
            array = np.ascontiguousarray(moments, np.dtype(dtype).newbyteorder("<"))
        if not np.isfinite(array).all():
            raise ValueError(f"row {row.key}: the VAE gave moments that are not finite in {dtype}")
        return array.tobytes()

    return {
        **{name: getattr(row, name) for name in schema.AnyRow.__annotations__},
        **dict(zip(_SIZE, row.size, strict=True)),
        **dict(zip(_CROP, row.crop, strict=True)),
        **dict(zip(_SHAPE, row.moments.shape[1:], strict=True)),
        "moments": stored(row.moments),
        "mirrored": stored(row.mirrored),
    }


class LatentSource(Source):
    """A split of a set of latents.

    Attributes:
      recipe: of the set.
      pixels: `Source.digest` of the pixel set.
    """

    _decoders: Mapping[str, Any] = {}

    def _open(self) -> None:
        super()._open()
        values = recipes.read(paths.recipe_file(self.folder)) or {}
        expected = {field.name for field in dataclasses.fields(LatentRecipe)} | {_PIXELS}
        if values.keys() != expected:
            raise DatasetError(f"{self.folder} holds no latents of this version of pea_jax")
        self.pixels = values.pop(_PIXELS)
        lists = {name: tuple(values[name]) for name in ("languages", "parts")}
        sizes = tuple((height, width) for height, width in values["sizes"])
        self.recipe = LatentRecipe(**{**values, **lists, "sizes": sizes})

    def _from_example(self, example: Mapping[str, Any]) -> LatentRow:
        """A row with moments in float32, whatever their stored dtype."""
        shape = [2, *(int(example[name]) for name in _SHAPE)]
        dtype = np.dtype(self.recipe.dtype).newbyteorder("<")

        def array(name: str) -> np.ndarray:
            return np.frombuffer(example[name], dtype).reshape(shape).astype(np.float32)

        return LatentRow(
            **schema.shared_fields(example),
            size=tuple(int(example[name]) for name in _SIZE),
            crop=tuple(int(example[name]) for name in _CROP),
            moments=array("moments"),
            mirrored=array("mirrored") if self.recipe.flips else None,
        )

    def picture(
        self, row: LatentRow, size: tuple[int, int], view: images.View = images.CENTRE
    ) -> dict[str, np.ndarray]:
        """A row's "moments" in place of pixels, and "time_ids" as in `Source.picture`.

        Raises:
          DatasetError: another size or view was encoded.
        """
        moments = row.mirrored if view.flipped else row.moments
        stored = dataclasses.replace(view, flipped=False) == images.CENTRE and moments is not None
        if row.size != size or not stored:
            raise DatasetError(
                f"row {row.key} of {self.folder}: expected latents of {buckets.name(size)} pixels, "
                f"{view}, got {buckets.name(row.size)}, {images.CENTRE}"
                f"{'' if row.mirrored is None else ' and its mirror image'}"
            )
        time_ids = np.array([row.height, row.width, *row.crop, *row.size], np.int32)
        return {"moments": moments, "time_ids": time_ids}


def recipe_file(recipe: LatentRecipe, pixels: str) -> dict[str, Any]:
    """The content of recipe.json: a recipe and the pixel set's digest."""
    return {**dataclasses.asdict(recipe), _PIXELS: pixels}


def find(data_dir: AnyPath | str, wanted: LatentRecipe, pixels: Source | None) -> LatentSource:
    """The set of latents for a run.

    Args:
      data_dir: folder of all data sets.
      wanted: the recipe of the run.
      pixels: the pixel set; None if it does not exist here.

    Raises:
      DatasetError: the set is missing, unfinished or made from other pixels; names existing sets.
    """
    folder = paths.folder_of(data_dir, wanted.name)
    if not paths.is_built(folder):
        raise DatasetError(_missing(data_dir, wanted))
    source = LatentSource(folder, wanted.split)
    differences = _differences(source, wanted, source.pixels if pixels is None else pixels.digest)
    if differences:
        raise DatasetError(
            f"{folder}: {differences}: remove it, and make it again with {_COMMAND}, or restore "
            "the pixel set that it was made from"
        )
    return source


def _missing(data_dir: AnyPath | str, wanted: LatentRecipe) -> str:
    """The message for a missing set, with the differences of existing sets."""
    folder = paths.folder_of(data_dir, wanted.name)
    if paths.unfinished(folder):
        return f"{folder} is not finished: continue with {_COMMAND}"
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


def _differences(source: LatentSource, wanted: LatentRecipe, pixels: str) -> str:
    """The differences of a set from the wanted one, in one line; "" if there are none."""
    there = recipe_file(source.recipe, source.pixels)
    return recipes.difference(recipes.as_json(there), recipes.as_json(recipe_file(wanted, pixels)))
