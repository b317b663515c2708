"""Where the files of a data set lie, and how TFDS knows them."""

from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from pea_jax.data import schema
from pea_jax.runtime import storage
from pea_jax.runtime.storage import AnyPath

#: Of all this: features, index, report.
VERSION = "1.0.0"
#: The file that is written last: with it a set is whole.
MARK = "dataset_info.json"


def index_file(folder: AnyPath, split: str) -> AnyPath:
    """Where a split's index lies."""
    return folder / f"index-{split}.npy"


def folder_of(data_dir: AnyPath | str, name: str) -> AnyPath:
    """Where the set of a name lies."""
    return storage.as_path(data_dir) / name / VERSION


def is_built(folder: AnyPath) -> bool:
    """Whether a folder holds a data set."""
    return (folder / MARK).is_file()


def report_file(folder: AnyPath) -> AnyPath:
    """Where each split's counts of kept and rejected rows, and the sizes of its files, lie."""
    return folder / "report.json"


def recipe_file(folder: AnyPath) -> AnyPath:
    """Where what the set was made from lies, if the builder was told."""
    return folder / "recipe.json"


def parts_folder(folder: AnyPath, digest: str) -> AnyPath:
    """Where the parts of a set lie until it is whole; `digest` is of what they are made from."""
    return folder.with_name(f"unfinished.{folder.name}.{digest}")


def unfinished(folder: AnyPath) -> list[AnyPath]:
    """The folders of parts that there are, whatever they are made from."""
    prefix = parts_folder(folder, "").name
    return [
        folder.with_name(name) for name in storage.held(folder.parent) if name.startswith(prefix)
    ]


def template(name: str, split: str) -> tfds.core.ShardedFileTemplate:
    """How TFDS calls the files of a split."""
    return tfds.core.ShardedFileTemplate(
        data_dir=Path(),
        dataset_name=name,
        split=split,
        filetype_suffix="array_record",
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    )


def write_info(
    folder: Path,
    name: str,
    description: str,
    form: schema.Form,
    splits: Sequence[tfds.core.SplitInfo],
) -> None:
    """Writes what TFDS knows of a set: its features and splits."""
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name,
        version=tfds.core.Version(VERSION),
        data_dir=str(folder),
        module_name=__name__,
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=description,
        features=form.features(),
        disable_shuffling=True,
    )
    info.set_file_format("array_record")
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(folder)
