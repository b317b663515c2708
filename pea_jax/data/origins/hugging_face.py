"""Data sets of the package `datasets`: by name on the Hub, or folders of save_to_disk.

The package is optional (the extra "datasets") and imported only for such a set.
"""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pea_jax.data.origins import sets

#: Files that mark a folder of save_to_disk.
_SAVED = ("dataset_dict.json", "state.json")
#: Features that are skipped, because reading a row would decode them.
_SKIPPED = ("Audio", "Video", "Pdf", "Nifti")


def shards(
    where: Sequence[str], split: str, image: str, rows_per_shard: int
) -> list[sets.SetShard]:
    """The shards of sets. Sets on the Hub are downloaded.

    Args:
      where: NAME, NAME:CONFIG or a folder, each also with #SPLIT.
      split: default split.
      image: column of the image.
      rows_per_shard: at most.

    Raises:
      ValueError: no such set, split or column, or the package is not installed.
    """
    if importlib.util.find_spec("datasets") is None:
        raise ValueError(
            "sets of Hugging Face take the package datasets: pip install 'pea-jax[datasets]'"
        )
    return sets.shards(where, split, image, rows_per_shard, functools.partial(_open, image))


@functools.lru_cache(maxsize=8)
def _open(image: str, of: sets.Named) -> sets.OpenSet:
    """Open a split without decoding.

    Image files may be in the set's folder, and in the package's folders for downloads.
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
        if type(feature).__name__ not in _SKIPPED
    ]
    rows = rows.select_columns(kept)
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    if image not in rows.column_names:
        raise ValueError(f"{name}: no column {image!r} of pictures, but {rows.column_names}")
    settings = datasets.config
    folders = [settings.DOWNLOADED_DATASETS_PATH, Path(settings.constants.HF_HUB_CACHE)]
    return sets.OpenSet(rows, rows._fingerprint, [folder, *folders] if folder.is_dir() else folders)


def _split(saved: Any, split: str, name: str) -> Any:
    """A split of a saved set, or a slice of it such as "train[:10%]".

    A set that was saved without splits has one split of any name.
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
