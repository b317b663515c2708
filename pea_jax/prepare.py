"""The task that makes a data set, and the one place that finds the set a config names."""

from ml_collections import ConfigDict

from pea_jax.data.builder import folder_of, is_built
from pea_jax.data.source import Source, locate
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


def prepare(config: ConfigDict, workdir: AnyPath | None = None, *, benchmark: bool = False) -> None:
    """Makes the data set of `config.data`, unless it is there, and says what it holds.

    Args:
      config: of the run; only `data.dataset` and `data.data_dir` matter.
      workdir: not used: data sets lie in `data.data_dir`, for every run.
      benchmark: read it as training would, for a while, and say how fast that is; then all of
        `config` matters.

    Raises:
      DatasetError: the set isn't there and isn't one that can be made (a ValueError).
    """
    del workdir
    source = open_split(config.data.dataset, config.data.data_dir)
    print(f"{config.data.dataset} is in {source.folder}:")
    for language in source.languages:
        native = len(source.select(native=True, languages=[language]))
        parallel = len(source.select(native=False, languages=[language]))
        print(f"  {language}: {parallel} parallel rows, {native} native rows")
    if benchmark:
        from pea_jax import pace  # it reads as `run` does, and `run` finds its set here

        pace.show(config, source)
