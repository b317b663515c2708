"""The task that makes a data set, and the one place that finds the set a config names."""

import json
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from pea_jax import storage
from pea_jax.data.builder import build, folder_of, is_built, report_file
from pea_jax.data.captions import Cleaning
from pea_jax.data.filters import Filters
from pea_jax.data.mapping import FieldMapping
from pea_jax.data.origins import tars
from pea_jax.data.origins.record import RecordShard
from pea_jax.data.rows import Rows, Rules
from pea_jax.data.source import Source, locate
from pea_jax.storage import AnyPath
from pea_jax.tinyworld import dataset as tinyworld

TINYWORLD = "tinyworld"
ORIGINS = ("tars", "table", "hugging_face", "tfds")


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


def prepare(config: ConfigDict, workdir: AnyPath | None = None) -> None:
    """Makes the data set of `config.data`, unless it is there, and says what it holds.

    Args:
      config: of the run; only `data.dataset`, `data.data_dir` and `prepare` matter.
      workdir: not used: data sets lie in `data.data_dir`, for every run.

    Raises:
      ValueError: values that cannot be, files that are not there, or a set that is neither there
        nor can be made.
    """
    del workdir
    if config.prepare.origin:
        folder = make(config)
        _show(folder, config.data.dataset)
    source = open_split(config.data.dataset, config.data.data_dir)
    print(f"{config.data.dataset} is in {source.folder}:")
    for language in source.languages:
        native = len(source.select(native=True, languages=[language]))
        parallel = len(source.select(native=False, languages=[language]))
        print(f"  {language}: {parallel} parallel rows, {native} native rows")


def make(config: ConfigDict) -> AnyPath:
    """The folder of the set that `config.prepare` describes, which is built where it is missing."""
    settings = config.prepare
    rules = Rules(
        FieldMapping(**settings.mapping), Cleaning(**settings.captions), Filters(**settings.filters)
    )
    splits = {split: _shards(config, where) for split, where in settings.where.items() if where}
    made = {split: [Rows(shard, rules) for shard in shards] for split, shards in splits.items()}
    return build(storage.as_path(config.data.data_dir), config.data.dataset, made)


def _shards(config: ConfigDict, where: Sequence[str]) -> Sequence[RecordShard]:
    return tars.shards(where)


def _show(folder: AnyPath, name: str) -> None:
    """Prints what was kept and what was not, and why."""
    report: Mapping = json.loads(report_file(folder).read_text("utf-8"))
    for split, counts in report.items():
        table = Table("", "rows", title=f"{name}, {split}")
        table.add_row("kept", f"{counts['kept']:,}")
        for reason, count in counts["rejected"].items():
            table.add_row(reason, f"{count:,}")
        Console().print(table)
    print(f"examples of every reason are in {report_file(folder)}")
