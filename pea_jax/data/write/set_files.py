"""Files of a finished data set: records under their TFDS names, index, report, recipe and info.

The index of a split has one small record per row. Loaders select rows by language and kind from it
without reading any image.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from pea_jax.data import paths, schema
from pea_jax.data.write import parts
from pea_jax.data.write import recipe as recipes
from pea_jax.data.write.parts import PartReport, ShardPart
from pea_jax.runtime import storage
from pea_jax.runtime.storage import AnyPath


@dataclass(frozen=True)
class SplitParts:
    """A split of a set.

    Attributes:
      pieces: its parts in order, each with its report; none is empty.
      report: the counts of the whole split.
    """

    pieces: Sequence[tuple[ShardPart, PartReport]]
    report: PartReport


def place(
    folder: AnyPath,
    top: AnyPath,
    splits: Mapping[str, SplitParts],
    description: str,
    recipe: Any,
    row_format: schema.RowFormat,
) -> None:
    """Assembles a set from its parts. It appears atomically; in a bucket, its mark comes last.

    Args:
      folder: of the finished set.
      top: folder of the parts.
      splits: by name.
      description: for TFDS.
      recipe: stored beside the rows; None for none.
      row_format: of the rows.

    Raises:
      ValueError: the records of a part are damaged.
    """
    name, report, infos, copies = folder.parent.name, {}, [], []
    with parts.drafts(top, "set") as draft:
        target = folder if storage.is_bucket(folder) else draft
        for split, content in splits.items():
            template = paths.template(name, split)
            reports = [report for _, report in content.pieces]
            files = [path.name for path in template.sharded_filepaths(len(reports))]
            copies += [
                (part.folder / parts.RECORDS, target / file, each.size)
                for (part, each), file in zip(content.pieces, files, strict=True)
            ]
            lengths = [each.kept for each in reports]
            infos.append(tfds.core.SplitInfo(split, lengths, content.report.size, template))
            _write_index(paths.index_file(draft, split), content)
            digests = "\n".join(each.digest for each in reports)
            report[split] = {
                "kept": content.report.kept,
                "rejected": dict(sorted(content.report.rejected.items())),
                "examples": dict(sorted(content.report.examples.items())),
                "files": dict(zip(files, [each.size for each in reports], strict=True)),
                "digest": hashlib.sha256(digests.encode()).hexdigest(),
            }
        for _ in storage.each(_copy_records, copies):
            pass
        text = json.dumps(report, indent=2, ensure_ascii=False)
        paths.report_file(draft).write_text(text, encoding="utf-8")
        if recipe is not None:
            recipes.write(paths.recipe_file(draft), recipe)
        _write_info(draft, name, description, row_format, infos)
        if target is draft:
            parts.sync(draft)
            draft.rename(folder)
            return
        written = {file.name for _, file, _ in copies}
        for file in storage.held(folder):
            # Left by another build that was stopped here.
            if file.startswith(f"{name}-") and file not in written:
                (folder / file).unlink()
        for file in sorted(storage.held(draft), key=lambda file: (file == paths.MARK, file)):
            storage.copy(draft / file, folder / file)


def _write_index(file: Path, content: SplitParts) -> None:
    """Join the indices of the parts on disk."""
    shape = (content.report.kept,)
    index = np.lib.format.open_memmap(file, mode="w+", dtype=schema.INDEX_DTYPE, shape=shape)
    start = 0
    for piece in parts.indices([part for part, _ in content.pieces]):
        index[start : start + len(piece)] = piece
        start += len(piece)
    index.flush()


def _copy_records(job: tuple[AnyPath, AnyPath, int]) -> None:
    """Link or copy the records of a part into the set: (source, target, bytes)."""
    source, target, size = job
    if storage.is_bucket(target):
        storage.copy(source, target)
    else:
        try:
            os.link(source, target)
        except OSError:  # some disks have no hard links
            shutil.copyfile(source, target)
    if (got := storage.size(target)) != size:
        raise ValueError(
            f"{source} has {got} bytes of {size}: remove {source.parent}, and it is made again"
        )


def _write_info(
    folder: Path,
    name: str,
    description: str,
    row_format: schema.RowFormat,
    splits: Sequence[tfds.core.SplitInfo],
) -> None:
    """Write the features and splits for TFDS."""
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name,
        version=tfds.core.Version(paths.VERSION),
        data_dir=str(folder),
        module_name=paths.__name__,
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=description,
        features=row_format.features(),
        disable_shuffling=True,
    )
    info.set_file_format("array_record")
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(folder)
