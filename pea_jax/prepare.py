"""The task that makes a data set, and the one place that finds the set a config names."""

import json

import jax
from ml_collections import ConfigDict

from pea_jax import latents as encoding
from pea_jax import parallel, storage
from pea_jax.config import model_dtype
from pea_jax.data import builder
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


def prepare(config: ConfigDict, workdir: AnyPath | None = None, *, latents: bool = False) -> None:
    """Makes the data set of `config.data`, unless it is there, and says what it holds.

    Args:
      config: of the run.
      workdir: not used: data sets lie in `data.data_dir`, for every run.
      latents: make the set of its latents, too.

    Raises:
      DatasetError: the set isn't there and isn't one that can be made (a ValueError).
      ValueError: as for `latents.make`.
    """
    del workdir
    source = open_split(config.data.dataset, config.data.data_dir)
    print(f"{config.data.dataset} is in {source.folder}:")
    for language in source.languages:
        native = len(source.select(native=True, languages=[language]))
        parallel_ = len(source.select(native=False, languages=[language]))
        print(f"  {language}: {parallel_} parallel rows, {native} native rows")
    if latents:
        platform = parallel.platform(parallel.make_mesh(devices=jax.local_devices()))
        folder = encoding.make(config, source, model_dtype(config.model.dtype, platform))
        report = json.loads(builder.report_file(folder).read_text("utf-8"))[encoding.SPLIT]
        bad = sum(report["rejected"].values())
        gigabytes = sum(report["files"].values()) / 1e9
        print(f"their latents are in {folder}: {report['kept']} rows, {gigabytes:.3g} GB")
        if bad:
            print(f"  {bad} pictures could not be read; examples are in report.json")
