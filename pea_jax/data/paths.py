"""Paths of a data set's files."""

from pathlib import Path

import tensorflow_datasets as tfds

from pea_jax.runtime import storage
from pea_jax.runtime.storage import AnyPath

#: Version of the file format: features, index and report.
VERSION = "1.0.0"
#: The file that is written last and marks a set as complete.
MARK = "dataset_info.json"


def index_file(folder: AnyPath, split: str) -> AnyPath:
    """The index of a split."""
    return folder / f"index-{split}.npy"


def folder_of(data_dir: AnyPath | str, name: str) -> AnyPath:
    """The folder of a set."""
    return storage.as_path(data_dir) / name / VERSION


def is_built(folder: AnyPath) -> bool:
    """Whether a folder holds a complete set."""
    return (folder / MARK).is_file()


def report_file(folder: AnyPath) -> AnyPath:
    """Each split's counts of kept and rejected rows, and the sizes of its files."""
    return folder / "report.json"


def recipe_file(folder: AnyPath) -> AnyPath:
    """The recipe of the set; absent if the set was built without one."""
    return folder / "recipe.json"


def parts_folder(folder: AnyPath, digest: str) -> AnyPath:
    """The folder of an unfinished set's parts; `digest` identifies what they are made from."""
    return folder.with_name(f"unfinished.{folder.name}.{digest}")


def unfinished(folder: AnyPath) -> list[AnyPath]:
    """All existing folders of parts for a set, whatever they are made from."""
    prefix = parts_folder(folder, "").name
    return [
        folder.with_name(name) for name in storage.held(folder.parent) if name.startswith(prefix)
    ]


def template(name: str, split: str) -> tfds.core.ShardedFileTemplate:
    """The file names of a split, as TFDS expects them."""
    return tfds.core.ShardedFileTemplate(
        data_dir=Path(),
        dataset_name=name,
        split=split,
        filetype_suffix="array_record",
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    )
