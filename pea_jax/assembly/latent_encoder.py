"""`pea-jax prepare --latents`: the VAE's moments of every picture that a run would see, kept.

The rows of a chunk of a part are encoded together, batch by batch of one size, over all devices of
this host; hosts share the parts. What a stopped command has done stays done (`data.builder`).
"""

import collections
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
from pea_jax.data.read.plan import problems
from pea_jax.data.read.source import Source
from pea_jax.data.write import builder
from pea_jax.data.write.hosts import Hosts
from pea_jax.data.write.parts import Counts
from pea_jax.models.latents import LatentCodec
from pea_jax.models.vae import VAE
from pea_jax.runtime import parallel
from pea_jax.runtime.storage import AnyPath
from pea_jax.weights.bases import BaseSpec, hash_vae, load_vae, read_base_config

#: The split that is trained on.
SPLIT = "train"

#: Of a part, at most: bytes of moments, and rows.
PART_BYTES, PART_ROWS = 1 << 30, 1 << 14

#: Of moments that are held in memory, at most.
CHUNK_BYTES = 1 << 28

#: What a device is given in one call: eight pictures of 512x512, more of smaller ones. How many of
#: them it encodes at a time is the VAE's concern.
_PIXELS_A_CALL, _PICTURES_A_CALL = 8 * 512 * 512, 64

Size = tuple[int, int]


def recipe_of(config: ConfigDict, dataset: str, dtype: DTypeLike) -> latents.Recipe:
    """What the latents of a run are made of.

    Args:
      config: see configs/base.py.
      dataset: the name of its pixel set.
      dtype: that the VAE is asked for in, see `weights.base.load_base`.

    Raises:
      ValueError: what cannot be kept, or no VAE.
    """
    data = config.data
    parts = {
        "native": data.native_batch_size > 0,
        "parallel": data.native_batch_size < data.batch_size,
    }
    return latents.Recipe(
        dataset=dataset,
        split=SPLIT,
        languages=tuple(sorted(set(data.languages))),
        parts=tuple(sorted(part for part, there in parts.items() if there)),
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
    """Makes the latents of a config, unless they are there.

    Args:
      config: see configs/base.py.
      pixels: the set that its `data` names.
      dtype: as for `recipe_of`.
      hosts: as for `builder.build`.
      progress: as for `builder.build`.

    Returns:
      The folder of the set.

    Raises:
      BadImagesError: more pictures can't be read than `data.max_bad_images`.
      ValueError: as for `recipe_of` and `builder.build`, or no row to encode.
    """
    data = config.data
    if wrong := problems(data.buckets, data.crop, data.languages, data.language_weights):
        raise ValueError("; ".join(wrong))
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

    def watched(done: int, parts: int, counts: Counts) -> None:
        bad = sum(counts.rejected.values())
        if bad > data.max_bad_images:
            raise BadImagesError(
                f"{bad} images in {pixels.folder} can't be read, at most {data.max_bad_images} are "
                "accepted"
            )
        progress(done, parts, counts)

    return builder.build(
        pixels.folder.parent.parent,
        recipe.name,
        {SPLIT: shards},
        f"What the VAE of {config.model.base} makes of {recipe.dataset}.",
        recipe=latents.recipe_file(recipe, pixels.digest),
        form=latents.form(recipe.dtype),
        hosts=hosts,
        progress=watched,
    )


def _buckets(config: ConfigDict) -> Sequence[Bucket]:
    side = config.data.image_size
    return config.data.buckets or ((side, side, 1.0),)


def allotted(
    pixels: Source, recipe: latents.Recipe, buckets: Sequence[Bucket]
) -> tuple[Int64[np.ndarray, "N"], Int64[np.ndarray, "N 2"]]:
    """Numbers of the rows that a set of latents holds, ascending; and the height and width that
    training sees each of them in.

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
    sides = {
        part: (pixels.index["height"][chosen], pixels.index["width"][chosen])
        for part, chosen in rows.items()
    }
    used, places = allot(sides, buckets)
    numbers = np.concatenate(list(rows.values()))
    sizes = np.array([bucket[:2] for bucket in used])[np.concatenate(list(places.values()))]
    order = np.argsort(numbers)
    return numbers[order], sizes[order]


class Encoder:
    """Pictures to moments, over all devices of this host.

    Args:
      load: gives the VAE on a mesh; called when the first picture comes.
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

    def batch_size(self, size: Size) -> int:
        """How many pictures of a size are encoded in one call."""
        each = max(1, _PIXELS_A_CALL // (size[0] * size[1]))
        return self._mesh.size * min(each, _PICTURES_A_CALL)

    def __call__(
        self, batches: Iterable[tuple[Any, UInt8[np.ndarray, "b H W 3"]]]
    ) -> Iterator[tuple[Any, Float[np.ndarray, "b 2 h w C"]]]:
        """The moments of each batch, with what came with it; one is encoded while one is fetched.

        A batch of less than `batch_size` is filled up with its last picture.
        """
        waiting: tuple[Any, int, Array] | None = None
        for told, pixels in itertools.chain(batches, [(None, None)]):
            before, waiting = waiting, None
            if pixels is not None:
                missing = self.batch_size(pixels.shape[1:3]) - len(pixels)
                full = np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])
                waiting = told, len(pixels), self._encode(parallel.to_global(full, self._mesh))
            if before is not None:
                yield before[0], np.asarray(before[2])[: before[1]]


@dataclasses.dataclass(frozen=True)
class _Look:
    """A row with what training would see of its picture; nothing where it can't be read.

    Attributes:
      place: in its chunk.
      row: of the pixel set.
      seen: `Source.picture` of each view.
    """

    place: int
    row: schema.Row
    seen: tuple[dict[str, np.ndarray], ...]


def _encoded(
    pixels: Source,
    rows: Int64[np.ndarray, "n"],
    sizes: Int64[np.ndarray, "n 2"],
    flips: bool,
    encoder: Encoder,
    chunk: int,
) -> Iterator[latents.LatentRow | schema.Rejected]:
    """The rows of a part, in order; so many of them are held at once."""
    for start in range(0, len(rows), chunk):
        some = slice(start, start + chunk)
        yield from _encoded_at_once(pixels, rows[some], sizes[some], flips, encoder)


def _encoded_at_once(
    pixels: Source,
    rows: Int64[np.ndarray, "n"],
    sizes: Int64[np.ndarray, "n 2"],
    flips: bool,
    encoder: Encoder,
) -> Iterator[latents.LatentRow | schema.Rejected]:
    done: dict[int, latents.LatentRow | schema.Rejected] = {}
    views = [images.CENTRE, images.View(flipped=True)][: 1 + flips]

    def look(place: int) -> _Look:
        row, size = pixels[int(rows[place])], tuple(sizes[place].tolist())
        try:
            return _Look(place, row, tuple(pixels.picture(row, size, view) for view in views))
        except images.CorruptImageError:
            return _Look(place, row, ())

    def batches() -> Iterator[tuple[tuple[list[_Look], int], np.ndarray]]:
        for size in dict.fromkeys(map(tuple, sizes.tolist())):
            places = np.flatnonzero((sizes == size).all(axis=1)).tolist()
            for looks in _ahead(look, places, encoder.batch_size(size)):
                for one in looks:
                    if not one.seen:
                        done[one.place] = schema.Rejected(one.row.key, images.UNREADABLE)
                good = [one for one in looks if one.seen]
                for view in range(len(views)) if good else ():
                    yield (good, view), np.stack([one.seen[view]["pixels"] for one in good])

    for (looks, view), moments in encoder(batches()):
        for one, each in zip(looks, moments, strict=True):
            if view:
                done[one.place] = dataclasses.replace(done[one.place], mirrored=each)
            else:
                done[one.place] = _row(one, each)
    yield from (done[place] for place in range(len(rows)))


def _row(one: _Look, moments: Float[np.ndarray, "2 h w C"]) -> latents.LatentRow:
    row, time_ids = one.row, one.seen[0]["time_ids"].tolist()
    return latents.LatentRow(
        **{name: getattr(row, name) for name in schema.Described.__annotations__},
        crop=tuple(time_ids[2:4]),
        size=tuple(time_ids[4:6]),
        moments=moments,
        mirrored=None,
    )


def _ahead(function: Callable[[Any], Any], items: Sequence[Any], count: int) -> Iterator[list[Any]]:
    """`function` of the items, in threads, so many at a time; those that come next are begun."""
    waiting: collections.deque[list[Future]] = collections.deque()
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for start in range(0, len(items), count):
            waiting.append([pool.submit(function, item) for item in items[start : start + count]])
            if len(waiting) > 1:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]
