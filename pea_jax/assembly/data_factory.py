"""The data set and the loader of a config."""

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
    """A split of a data set; builds a missing tinyworld set.

    Args:
      dataset: "tinyworld", or the "name" or "name/version" of a set in `data_dir`.
      data_dir: folder of the prepared sets.
      split: such as "train" or "test".

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
    """The rows of a run, with images or, for `data.latents`, with cached latents.

    Latents do not need their pixel set. If it exists, it must be the one they were made from.

    Args:
      config: of the run.
      platform: of its devices, from `parallel.platform`.

    Raises:
      DatasetError: there is no such set, or it does not fit the run (a ValueError).
    """
    data = config.data
    data_dir = storage.as_path(data.data_dir)
    if not data.latents:
        return open_split(data.dataset, data_dir)
    name = tinyworld.name() if data.dataset == TINYWORLD else data.dataset
    dtype = model_dtype(config.model.dtype, platform)
    wanted = latent_encoder.recipe_of(config, name.split("/")[0], dtype)
    try:
        folder = locate(data_dir, name)
    except DatasetError:
        return latents.find(data_dir, wanted, None)
    return latents.find(data_dir, wanted, Source(folder, latent_encoder.SPLIT))


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
      shard_index: index of this host.
      shard_count: number of hosts.

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
