"""`pea-jax prepare --latents`: caches the VAE's moments of every image in a run.

The set is built in parts (`data.write.builder`), which hosts share and a stopped command reuses.
Each part is encoded in chunks, and each chunk in batches of one size on all devices of the host.
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int64, UInt8
from ml_collections import ConfigDict

from pea_jax.data import images, latents, schema
from pea_jax.data.buckets import Bucket, allot
from pea_jax.data.read.loader import BadImagesError
from pea_jax.data.read.plan import config_problems
from pea_jax.data.read.source import Source
from pea_jax.data.write import builder
from pea_jax.data.write.hosts import Hosts
from pea_jax.models.latents import LatentCodec
from pea_jax.models.vae import VAE
from pea_jax.runtime import parallel
from pea_jax.runtime.storage import AnyPath
from pea_jax.weights.bases import BaseSpec, hash_vae, load_vae, read_base_config

#: The training split.
SPLIT = "train"

#: Limits of a part: bytes of moments, and rows.
PART_BYTES, PART_ROWS = 1 << 30, 1 << 14

#: Limit of moments in memory, bytes.
CHUNK_BYTES = 1 << 28

#: Limits of one call per device: pixels (eight images of 512x512), and images. The VAE may split
#: the call further.
_PIXELS_A_CALL, _PICTURES_A_CALL = 8 * 512 * 512, 64


def recipe_of(config: ConfigDict, dataset: str, dtype: DTypeLike) -> latents.LatentRecipe:
    """The recipe of a run's latents.

    Args:
      config: see configs/base.py.
      dataset: name of the pixel set.
      dtype: requested dtype of the VAE, see `weights.bases.load_base`.

    Raises:
      ValueError: the config cannot use cached latents, or the base has no VAE.
    """
    data = config.data
    parts = {
        "native": data.native_batch_size > 0,
        "parallel": data.native_batch_size < data.batch_size,
    }
    return latents.LatentRecipe(
        dataset=dataset,
        split=SPLIT,
        languages=tuple(sorted(set(data.languages))),
        parts=tuple(sorted(part for part, is_used in parts.items() if is_used)),
        sizes=tuple(sorted(bucket[:2] for bucket in _buckets(config))),
        crop=data.crop,
        flips=data.random_flip,
        dtype=data.latents_dtype,
        vae=hash_vae(BaseSpec(config.model.base, dtype)),
        compute=jnp.dtype(read_base_config(config.model.base).dtypes(dtype)["vae"]).name,
    )


def make(
    config: ConfigDict, pixels: Source, dtype: DTypeLike, hosts: Hosts, progress: builder.Progress
) -> AnyPath:
    """Makes the latents of a config, unless they exist.

    Args:
      config: see configs/base.py.
      pixels: the set that `config.data` names.
      dtype: as for `recipe_of`.
      hosts: as for `builder.build`.
      progress: as for `builder.build`.

    Returns:
      The folder of the set.

    Raises:
      BadImagesError: more than `data.max_bad_images` images are unreadable.
      ValueError: as for `recipe_of` and `builder.build`, or there is no row to encode.
    """
    data = config.data
    if problems := config_problems(data.buckets, data.crop, data.languages, data.language_weights):
        raise ValueError("; ".join(problems))
    recipe = recipe_of(config, pixels.folder.parent.name, dtype)
    rows, sizes = allotted(pixels, recipe, _buckets(config))
    base = read_base_config(config.model.base)
    factor, channels = base.vae.downsampling_factor, base.vae.latent_channels
    if uneven := [size for size in recipe.sizes if size[0] % factor or size[1] % factor]:
        raise ValueError(f"latents: expected sizes that are multiples of {factor}, got {uneven}")
    places = max(height * width for height, width in recipe.sizes) // factor**2
    numbers = 2 * channels * places * (1 + recipe.flips)
    each = max(1, min(PART_ROWS, PART_BYTES // (numbers * np.dtype(recipe.dtype).itemsize)))
    chunk = max(1, CHUNK_BYTES // (numbers * np.dtype(np.float32).itemsize))
    encoder = Encoder(lambda mesh: load_vae(BaseSpec(config.model.base, dtype), mesh=mesh))
    parts = [slice(start, start + each) for start in range(0, len(rows), each)]
    shards = [
        functools.partial(_encoded, pixels, rows[part], sizes[part], recipe.flips, encoder, chunk)
        for part in parts
    ]

    def checked_progress(done: int, parts: int, kept: int, bad: int) -> None:
        if bad > data.max_bad_images:
            raise BadImagesError(
                f"{bad} images in {pixels.folder} can't be read, at most {data.max_bad_images} are "
                "accepted"
            )
        progress(done, parts, kept, bad)

    return builder.build(
        pixels.folder.parent.parent,
        recipe.name,
        {SPLIT: shards},
        f"Latents of {recipe.dataset} by the VAE of {config.model.base}.",
        recipe=latents.recipe_file(recipe, pixels.digest),
        row_format=latents.row_format(recipe.dtype),
        hosts=hosts,
        progress=checked_progress,
    )


def _buckets(config: ConfigDict) -> Sequence[Bucket]:
    side = config.data.image_size
    return config.data.buckets or ((side, side, 1.0),)


def allotted(
    pixels: Source, recipe: latents.LatentRecipe, buckets: Sequence[Bucket]
) -> tuple[Int64[np.ndarray, "N"], Int64[np.ndarray, "N 2"]]:
    """The numbers of the rows in a set of latents, ascending, and their training sizes.

    Returns:
      Row numbers, and the height and width of each row.

    Raises:
      ValueError: a part has no rows, or a language is not in the set.
    """
    rows = {
        part: pixels.select(native=part == "native", languages=recipe.languages)
        for part in recipe.parts
    }
    if lacking := [part for part, chosen in rows.items() if not len(chosen)]:
        raise ValueError(
            f"{pixels.folder}, split {pixels.split}, has no {' and no '.join(lacking)} rows of "
            f"{list(recipe.languages)}"
        )
    used, places = allot({part: pixels.sides(chosen) for part, chosen in rows.items()}, buckets)
    numbers = np.concatenate(list(rows.values()))
    sizes = np.array([bucket[:2] for bucket in used])[np.concatenate(list(places.values()))]
    order = np.argsort(numbers)
    return numbers[order], sizes[order]


class Encoder:
    """Encodes images as moments on all devices of this host.

    Args:
      load: loads the VAE on a mesh; called for the first image.
    """

    def __init__(self, load: Callable[[Mesh], VAE]):
        self._load = load

    @functools.cached_property
    def _mesh(self) -> Mesh:
        return parallel.make_mesh(devices=jax.local_devices())

    @functools.cached_property
    def _encode(self) -> Callable[[Any], Float[Array, "B 2 h w C"]]:
        graph, state = nnx.split(self._load(self._mesh))

        def encode(state: Any, pixels: UInt8[Array, "B H W 3"]) -> Float[Array, "B 2 h w C"]:
            moments = LatentCodec(nnx.merge(graph, state), self._mesh.size).moments(pixels)
            return jnp.stack(moments, axis=1)

        rows = parallel.batch_sharding(self._mesh)
        return functools.partial(
            jax.jit(encode, in_shardings=(None, rows), out_shardings=rows), state
        )

    def batch_size(self, size: tuple[int, int]) -> int:
        """The number of images of a size in one call."""
        each = max(1, _PIXELS_A_CALL // (size[0] * size[1]))
        return self._mesh.size * min(each, _PICTURES_A_CALL)

    def __call__(
        self, batches: Iterable[tuple[Any, UInt8[np.ndarray, "b H W 3"]]]
    ) -> Iterator[tuple[Any, Float[np.ndarray, "b 2 h w C"]]]:
        """The moments of each batch with its label. The next batch is encoded meanwhile.

        Batches smaller than `batch_size` are padded with their last image.
        """

        def start(label: Any, pixels: np.ndarray) -> tuple[Any, int, Array]:
            missing = self.batch_size(pixels.shape[1:3]) - len(pixels)
            full = np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])
            return label, len(pixels), self._encode(parallel.to_global(full, self._mesh))

        running = itertools.chain(itertools.starmap(start, batches), [None])
        for (label, count, moments), _ in itertools.pairwise(running):
            yield label, np.asarray(moments)[:count]


@dataclasses.dataclass(frozen=True)
class _Decoded:
    """A row with its decoded image.

    Attributes:
      place: in the chunk.
      row: of the pixel set.
      pictures: `Source.picture` of each view; empty if the image is unreadable.
    """

    place: int
    row: schema.Row
    pictures: tuple[dict[str, np.ndarray], ...]


def _encoded(
    pixels: Source,
    rows: Int64[np.ndarray, "n"],
    sizes: Int64[np.ndarray, "n 2"],
    flips: bool,
    encoder: Encoder,
    chunk: int,
) -> Iterator[latents.LatentRow | schema.Rejected]:
    """The rows of a part, in order; `chunk` rows are in memory at a time."""
    for start in range(0, len(rows), chunk):
        part = slice(start, start + chunk)
        yield from _encoded_chunk(pixels, rows[part], sizes[part], flips, encoder)


def _encoded_chunk(
    pixels: Source,
    rows: Int64[np.ndarray, "n"],
    sizes: Int64[np.ndarray, "n 2"],
    flips: bool,
    encoder: Encoder,
) -> Iterator[latents.LatentRow | schema.Rejected]:
    done: dict[int, latents.LatentRow | schema.Rejected] = {}
    views = [images.CENTRE, images.View(flipped=True)][: 1 + flips]

    def decode(place: int) -> _Decoded:
        row, size = pixels[int(rows[place])], tuple(sizes[place].tolist())
        try:
            return _Decoded(place, row, tuple(pixels.picture(row, size, view) for view in views))
        except images.CorruptImageError:
            return _Decoded(place, row, ())

    def batches() -> Iterator[tuple[tuple[list[_Decoded], int], np.ndarray]]:
        for size in dict.fromkeys(map(tuple, sizes.tolist())):
            places = np.flatnonzero((sizes == size).all(axis=1)).tolist()
            for batch in _prefetched(decode, places, encoder.batch_size(size)):
                for one in batch:
                    if not one.pictures:
                        done[one.place] = schema.Rejected(one.row.key, images.UNREADABLE)
                good = [one for one in batch if one.pictures]
                for view in range(len(views)) if good else ():
                    yield (good, view), np.stack([one.pictures[view]["pixels"] for one in good])

    for (batch, view), moments in encoder(batches()):
        for one, each in zip(batch, moments, strict=True):
            if view:
                done[one.place] = dataclasses.replace(done[one.place], mirrored=each)
            else:
                done[one.place] = _row(one, each)
    yield from (done[place] for place in range(len(rows)))


def _row(decoded: _Decoded, moments: Float[np.ndarray, "2 h w C"]) -> latents.LatentRow:
    time_ids = decoded.pictures[0]["time_ids"].tolist()
    return latents.LatentRow(
        **{name: getattr(decoded.row, name) for name in schema.AnyRow.__annotations__},
        crop=tuple(time_ids[2:4]),
        size=tuple(time_ids[4:6]),
        moments=moments,
        mirrored=None,
    )


def _prefetched(
    function: Callable[[Any], Any], items: Sequence[Any], count: int
) -> Iterator[list[Any]]:
    """`function` of the items in lists of `count`, in threads that start one list ahead."""
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        starts = range(0, len(items), count)
        running = (pool.map(function, items[start : start + count]) for start in starts)
        for results, _ in itertools.pairwise(itertools.chain(running, [None])):
            yield list(results)
