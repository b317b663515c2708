"""The one place that finds the data set a config names."""

from ml_collections import ConfigDict

from pea_jax import latents as encoding
from pea_jax import storage
from pea_jax.config import model_dtype
from pea_jax.data import latents as latent_sets
from pea_jax.data.builder import folder_of, is_built
from pea_jax.data.source import DatasetError, Source, locate
from pea_jax.storage import AnyPath
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
    wanted = encoding.recipe_of(
        config, _name(data.dataset), model_dtype(config.model.dtype, platform)
    )
    try:
        if data.dataset == TINYWORLD:
            folder = locate(data_dir, tinyworld.name())
        else:
            folder = locate(data_dir, data.dataset)
    except DatasetError:
        folder = None
    pixels = None if folder is None else Source(folder, encoding.SPLIT)
    return latent_sets.find(data_dir, wanted, pixels)


def _name(dataset: str) -> str:
    """What the folder of a set is called."""
    return tinyworld.name() if dataset == TINYWORLD else dataset.split("/")[0]
