"""Rows whose key another row of their split has: the first is kept, by shard and by place in it."""

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from array_record.python import array_record_module

from pea_jax.data.write import parts
from pea_jax.data.write.parts import Job, Part, Report
from pea_jax.runtime import storage


def find(made: Sequence[Part], kept: Sequence[int]) -> dict[int, np.ndarray]:
    """The places of the rows to drop, ascending, by the number of their part.

    Candidates are found by their hashes, which with their order take some 50 bytes a row in memory.
    Their keys are compared before one is taken for a repetition, and no other keys are read.

    Args:
      made: the parts of one split, in order.
      kept: the rows of each.
    """
    ends = np.cumsum([0, *kept])
    hashes = np.empty(ends[-1], np.uint64)
    for number, index in enumerate(parts.indices(made)):
        hashes[ends[number] : ends[number + 1]] = index["key_hash"]
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    candidates = np.unique(np.concatenate([order[same], order[same + 1]]))
    concerned = np.unique(np.searchsorted(ends, candidates, side="right") - 1).tolist()
    seen, drop = set(), {}
    all_keys = storage.each(Part.keys, [made[number] for number in concerned])
    for number, keys in zip(concerned, all_keys, strict=True):
        first, last = np.searchsorted(candidates, ends[[number, number + 1]])
        places = (candidates[first:last] - ends[number]).tolist()
        repeated = []
        for place in places:
            if keys[place] in seen:
                repeated.append(place)
            seen.add(keys[place])
        if repeated:
            drop[number] = np.array(repeated)
    return drop


@dataclass(frozen=True)
class Thinning(Job):
    """Makes a part of another's rows without those whose keys earlier parts have.

    Attributes:
      part: the new one; its report counts what it lost alone.
      source: the other.
    """

    source: Part

    @classmethod
    def plan(cls, source: Part, drop: np.ndarray) -> "Thinning":
        """Of the rows at the places `drop`, which are written beside the parts for who does it."""
        thinning = cls(Part(source.top, f"{source.name}-thinned"), source)
        file = io.BytesIO()
        np.save(file, drop)
        storage.replace_bytes(thinning._drop, file.getvalue())
        return thinning

    @property
    def _drop(self) -> storage.AnyPath:
        return self.source.folder.with_name(f"{self.source.name}-drop.npy")

    def _write(self, folder: Path) -> Report:
        drop = np.load(io.BytesIO(self._drop.read_bytes()))
        keys = self.source.keys()
        kept = np.ones(len(keys), bool)
        kept[drop] = False
        report = Report(kept=int(kept.sum()))
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
