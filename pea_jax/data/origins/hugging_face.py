"""Sets of the package `datasets`: by their names on the Hub, or folders of save_to_disk.

The package is imported here alone, when such a set is asked for (the extra "datasets").
"""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pea_jax.data.origins import sets

#: With one of these a folder is one of save_to_disk.
_SAVED = ("dataset_dict.json", "state.json")
#: Features that reading a row would decode, and no row of ours is made of.
_FOREIGN = ("Audio", "Video", "Pdf", "Nifti")


def shards(
    where: Sequence[str], split: str, image: str, rows_per_shard: int
) -> list[sets.SetShard]:
    """The shards of sets, which are downloaded where they are on the Hub.

    Args:
      where: NAME or NAME#SPLIT, NAME also with :CONFIG or a folder.
      split: where none is named.
      image: the column of the picture.
      rows_per_shard: at most.

    Raises:
      ValueError: no such set, split or column, or the package is not installed.
    """
    if importlib.util.find_spec("datasets") is None:
        raise ValueError(
            "sets of Hugging Face take the package datasets: pip install 'pea-jax[datasets]'"
        )
    found = []
    for each in sets.named(where, split):
        rows, _ = _open(each)
        if image not in rows.column_names:
            raise ValueError(
                f"{each.name}: no column {image!r} of pictures, but {rows.column_names}"
            )
        found += [
            sets.SetShard(each, rows._fingerprint, image, *stretch, _open)
            for stretch in sets.stretches(len(rows), rows_per_shard)
        ]
    return found


@functools.lru_cache(maxsize=8)
def _open(of: sets.Named) -> tuple[Any, list[Path]]:
    """A split of a set, its pictures not decoded; and where the files of pictures may lie, which
    are the set's folder and those that the package downloads and unpacks to.
    """
    import datasets

    name, split, folder = of.name, of.split, Path(of.name).expanduser()
    if any((folder / mark).is_file() for mark in _SAVED):
        rows = _split(datasets.load_from_disk(str(folder)), split, name)
    elif folder.is_dir():
        rows = datasets.load_dataset(str(folder), split=split)
    else:
        repository, _, config = name.partition(":")
        rows = datasets.load_dataset(repository, config or None, split=split)
    kept = [
        column
        for column, feature in rows.features.items()
        if type(feature).__name__ not in _FOREIGN
    ]
    rows = rows.select_columns(kept)
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    settings = datasets.config
    folders = [settings.DOWNLOADED_DATASETS_PATH, Path(settings.constants.HF_HUB_CACHE)]
    return rows, [folder, *folders] if folder.is_dir() else folders


def _split(saved: Any, split: str, name: str) -> Any:
    """A split, or a slice of it such as "train[:10%]", of what save_to_disk wrote.

    A set that was saved without splits has one, of any name.
    """
    import datasets

    if not isinstance(saved, datasets.DatasetDict):
        saved = {split.partition("[")[0]: saved}
    try:
        spec = datasets.ReadInstruction.from_spec(split)
        slices = spec.to_absolute({each: len(rows) for each, rows in saved.items()})
    except (ValueError, AssertionError) as error:
        raise ValueError(f"{name} has the splits {sorted(saved)}, not {split!r}") from error
    chosen = [(saved[each.splitname], slice(each.from_, each.to)) for each in slices]
    return datasets.concatenate_datasets(
        [rows.select(range(*places.indices(len(rows)))) for rows, places in chosen]
    )
