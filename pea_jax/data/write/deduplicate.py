"""Removal of rows with repeated keys: the first row of a split with a key is kept."""

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from array_record.python import array_record_module

from pea_jax.data.write import parts
from pea_jax.data.write.parts import PartJob, PartReport, ShardPart
from pea_jax.runtime import storage


def repeated_rows(made: Sequence[ShardPart], kept: Sequence[int]) -> dict[int, np.ndarray]:
    """The rows to drop from each part: part number -> row numbers in the part, ascending.

    Candidates are found by the hashes of their keys, which takes about 50 bytes of memory a row.
    Only the keys of candidates are then read and compared.

    Args:
      made: the parts of one split, in order.
      kept: number of rows of each part.
    """
    ends = np.cumsum([0, *kept])
    hashes = np.empty(ends[-1], np.uint64)
    for number, index in enumerate(parts.indices(made)):
        hashes[ends[number] : ends[number + 1]] = index["key_hash"]
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    candidates = np.unique(np.concatenate([order[same], order[same + 1]]))
    affected = np.unique(np.searchsorted(ends, candidates, side="right") - 1).tolist()
    seen, drop = set(), {}
    all_keys = storage.each(ShardPart.keys, [made[number] for number in affected])
    for number, keys in zip(affected, all_keys, strict=True):
        first, last = np.searchsorted(candidates, ends[[number, number + 1]])
        repeated = []
        for place in (candidates[first:last] - ends[number]).tolist():
            if keys[place] in seen:
                repeated.append(place)
            seen.add(keys[place])
        if repeated:
            drop[number] = np.array(repeated)
    return drop


@dataclass(frozen=True)
class DeduplicatePart(PartJob):
    """Copies a part without the rows whose keys occur in earlier parts.

    Attributes:
      part: the copy; its report counts only the dropped rows as rejected.
      source: the original part.
    """

    source: ShardPart

    @classmethod
    def plan(cls, source: ShardPart, drop: np.ndarray) -> "DeduplicatePart":
        """The job that drops the rows numbered `drop`. The numbers are stored beside the parts."""
        job = cls(ShardPart(source.top, f"{source.name}-thinned"), source)
        file = io.BytesIO()
        np.save(file, drop)
        storage.replace_bytes(job._drop, file.getvalue())
        return job

    @property
    def _drop(self) -> storage.AnyPath:
        return self.source.folder.with_name(f"{self.source.name}-drop.npy")

    def _write(self, folder: Path) -> PartReport:
        drop = np.load(io.BytesIO(self._drop.read_bytes()))
        keys = self.source.keys()
        kept = np.ones(len(keys), bool)
        kept[drop] = False
        report = PartReport(kept=int(kept.sum()))
        for place in drop.tolist():
            report.reject(parts.REPEATED_KEY, keys[place])
        self._copy_records(folder, kept)
        np.save(folder / parts.INDEX, self.source.index()[kept])
        lines = [json.dumps(key) + "\n" for key, keep in zip(keys, kept, strict=True) if keep]
        (folder / parts.KEYS).write_text("".join(lines))
        return report

    def _copy_records(self, folder: Path, kept: np.ndarray) -> None:
        file = self.source.folder / parts.RECORDS
        if storage.is_bucket(file):
            storage.copy(file, folder.parent / parts.RECORDS)
            file = folder.parent / parts.RECORDS
        with parts.faults():
            reader = array_record_module.ArrayRecordReader(str(file))
        with contextlib.closing(reader), parts.writing(folder / parts.RECORDS) as write:
            for place in np.flatnonzero(kept).tolist():
                with parts.faults():
                    record = reader.read([place])[0]
                write(record)
