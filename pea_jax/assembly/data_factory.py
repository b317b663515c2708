"""The data of a config: the set that it names, and the batches that it asks for."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from pea_jax.assembly import latent_encoder
from pea_jax.assembly.model_factory import model_dtype
from pea_jax.data import latents
from pea_jax.data.paths import folder_of, is_built
from pea_jax.data.read.loader import Loader, Tokenize, make_loader
from pea_jax.data.read.source import DatasetError, Source, locate
from pea_jax.runtime import storage
from pea_jax.runtime.storage import AnyPath
from pea_jax.tinyworld import dataset as tinyworld

TINYWORLD = "tinyworld"


def open_split(dataset: str, data_dir: AnyPath | str, split: str = "train") -> Source:
    """A split of a data set; tinyworld is built on first use.

    Args:
      dataset: "tinyworld", or the "name" or "name/version" of a set in `data_dir`.
      data_dir: holds the prepared sets.
      split: "train" or "test", or what else the set has.

    Raises:
      DatasetError: there is no such set or split (a ValueError).
    """
    if dataset == TINYWORLD:
        folder = folder_of(data_dir, tinyworld.name())
        if not is_built(folder):
            print(f"building the tinyworld data set in {folder}, once", flush=True)
            tinyworld.prepare(data_dir)
    else:
        folder = locate(data_dir, dataset)
    return Source(folder, split)


def open_source(config: ConfigDict, platform: str) -> Source:
    """The rows that a run reads: with their pictures, or with latents (`data.latents`).

    A set of latents serves without the pixel set; where that is there, it must be the same.

    Args:
      config: of the run.
      platform: of its devices, as `parallel.platform` gives it.

    Raises:
      DatasetError: there is no such set, or it is not of this run (a ValueError).
    """
    data = config.data
    data_dir = storage.as_path(data.data_dir)
    if not data.latents:
        return open_split(data.dataset, data_dir)
    wanted = latent_encoder.recipe_of(
        config, _name(data.dataset), model_dtype(config.model.dtype, platform)
    )
    try:
        if data.dataset == TINYWORLD:
            folder = locate(data_dir, tinyworld.name())
        else:
            folder = locate(data_dir, data.dataset)
    except DatasetError:
        folder = None
    pixels = None if folder is None else Source(folder, latent_encoder.SPLIT)
    return latents.find(data_dir, wanted, pixels)


def open_loader(
    config: ConfigDict,
    source: Source,
    rows: Mapping[str, int],
    *,
    native_tokenizer: Tokenize,
    english_tokenizer: Tokenize,
    shard_index: int = 0,
    shard_count: int = 1,
) -> Loader:
    """The loader of a run.

    Args:
      config: see configs/base.py.
      source: of the rows.
      rows: of a step, native and parallel, over all hosts (`checks.batch_rows`).
      native_tokenizer: of the language encoder.
      english_tokenizer: of the base model.
      shard_index: of this host.
      shard_count: how many hosts there are.

    Raises:
      ValueError: as `make_loader` does.
    """
    return make_loader(
        source,
        native_batch=rows["native"],
        parallel_batch=rows["parallel"],
        seed=config.seed,
        shard_index=shard_index,
        shard_count=shard_count,
        native_tokenizer=native_tokenizer,
        english_tokenizer=english_tokenizer,
        image_size=config.data.image_size,
        buckets=config.data.buckets,
        crop=config.data.crop,
        random_flip=config.data.random_flip,
        languages=config.data.languages,
        language_weights=config.data.language_weights,
        workers=config.data.workers,
        max_bad=config.data.max_bad_images,
    )


def _name(dataset: str) -> str:
    """What the folder of a set is called."""
    return tinyworld.name() if dataset == TINYWORLD else dataset.split("/")[0]
