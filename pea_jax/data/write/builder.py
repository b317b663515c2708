"""Builds data sets: rows in, a TFDS data set in ArrayRecord out.

Every input shard becomes a part (`parts`) in a folder beside the set. When all parts are complete,
the set is assembled from them (`set_files`) and appears atomically. A build that was stopped at any
moment therefore continues with the parts it has.
"""

import contextlib
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pea_jax
from pea_jax.data import paths, schema
from pea_jax.data.write import deduplicate, parts, set_files
from pea_jax.data.write import recipe as recipes
from pea_jax.data.write.executors import Executor, WorkerError, serial
from pea_jax.data.write.hosts import ALONE, Hosts
from pea_jax.data.write.parts import PartReport, Shard, ShardPart
from pea_jax.data.write.set_files import SplitParts
from pea_jax.runtime import storage
from pea_jax.runtime.storage import AnyPath

#: The description of an unfinished set, in the folder of its parts.
_PLAN = "plan.json"

_NOT_SHARED = "hosts make a set together in a storage that all of them share"

#: Called with the number of finished parts, of all parts, of kept rows and of rejected rows.
Progress = Callable[[int, int, int, int], None]


def build(
    data_dir: AnyPath | str,
    name: str,
    splits: Mapping[str, Sequence[Shard]],
    description: str = "",
    *,
    recipe: Mapping[str, Any] | None = None,
    row_format: schema.RowFormat = schema.PICTURES,
    run: Executor = serial,
    hosts: Hosts = ALONE,
    progress: Progress = lambda *_: None,
) -> AnyPath:
    """Writes a data set unless it exists; continues a build that was stopped.

    Rows without a caption, a required English caption, a language or an image are rejected and
    counted in ``report.json``. So are rows that repeat a key of their split (see `deduplicate`).

    Args:
      data_dir: folder of all data sets.
      name: of the data set, in lower case with underscores.
      splits: split name -> a function per shard that yields its rows. The set keeps the order of
        the shards and of their rows.
      description: stored in the set's dataset_info.json.
      recipe: what the rows are made from, as JSON values. A set never mixes two recipes.
      row_format: how the rows are stored.
      run: the executor of the jobs: `executors.serial`, `processes(n)` or `on_beam(options)`.
      hosts: the hosts that make this call together.
      progress: called at the beginning and after each part with the counts of this host's share.
        The first of several hosts calls it once more with the counts of all hosts.

    Returns:
      The folder of the set: data_dir/name/version.

    Raises:
      ValueError: a split has no row to keep; the set or its unfinished parts have another recipe; a
        name is invalid; another file occupies the set's path. Errors of a shard pass unchanged. The
        finished parts remain for the next call.
      StorageError: hosts do not see each other's parts, or the storage fails.
    """
    folder = paths.folder_of(data_dir, name)
    if not storage.is_bucket(folder):
        folder = folder.absolute()
    wanted = recipes.as_json(recipe)
    _check_names(name, splits)
    parts.remove_orphans(folder.parent)
    occupied = not storage.is_bucket(folder) and folder.exists()
    if occupied and not paths.is_built(folder):
        raise ValueError(f"{folder} is in the way: it holds no data set, remove it")
    work = _Build(folder, splits, wanted, row_format, run, hosts, progress)
    _unless_built(folder, work.make_parts)
    hosts.wait(f"parts of {name}")
    if hosts.index == 0:
        _unless_built(folder, lambda: work.assemble(description))
    hosts.wait(name)
    if not paths.is_built(folder):
        raise storage.StorageError(
            f"{folder} is not there, but the first host made it: {_NOT_SHARED}"
        )
    if wanted is not None:
        _check_recipe(folder, recipes.read(paths.recipe_file(folder)), wanted)
    for top in paths.unfinished(folder) if hosts.index == 0 else ():
        if top == work.top or _is_empty(top):
            _remove(top)
    return folder


def _unless_built(folder: AnyPath, do: Callable[[], None]) -> None:
    """Do a step of the build unless the set exists.

    Another process may finish the same set meanwhile and remove the parts. Then errors are ignored.
    """
    try:
        if not paths.is_built(folder):
            do()
    except (OSError, WorkerError):
        if not paths.is_built(folder):
            raise


def _check_names(name: str, splits: Mapping[str, Sequence[Shard]]) -> None:
    wrong = [] if re.fullmatch(r"[a-z][a-z0-9_]*", name) else [f"data set {name!r}"]
    wrong += [f"split {split!r}" for split in splits if not re.fullmatch(r"[a-z]\w*", split)]
    if wrong or not splits:
        got = ", ".join(wrong) or "no split"
        raise ValueError(f"expected names of lower case letters, digits and underscores, got {got}")


def _check_recipe(folder: AnyPath, there: Any, now: Any) -> None:
    if difference := recipes.difference(there, now):
        raise ValueError(
            f"{folder} was made from something else: {difference}. Remove it, or give the new data "
            "set another name"
        )


@dataclass
class _Build:
    """One call of `build` for a set that does not exist."""

    folder: AnyPath
    splits: Mapping[str, Sequence[Shard]]
    recipe: Any
    row_format: schema.RowFormat
    run: Executor
    hosts: Hosts
    progress: Progress

    def __post_init__(self):
        shards = {split: len(shards) for split, shards in self.splits.items()}
        self.plan = {"pea_jax": pea_jax.__version__, "shards": shards, "recipe": self.recipe}
        digest = hashlib.sha256(json.dumps(self.plan, sort_keys=True).encode()).hexdigest()[:10]
        self.top = paths.parts_folder(self.folder, digest)
        self.jobs = {
            split: [
                self._job(f"{split}-{number:05d}", shard) for number, shard in enumerate(shards)
            ]
            for split, shards in self.splits.items()
        }
        self.reports: dict[ShardPart, PartReport] = {}
        self.total = PartReport()

    def _job(self, name: str, shard: Shard) -> parts.BuildPart:
        return parts.BuildPart(ShardPart(str(self.top), name), shard, self.row_format)

    def make_parts(self) -> None:
        """Write the missing parts of this host's share."""
        self._create_top()
        share = self.hosts.share(list(itertools.chain(*self.jobs.values())))
        self._count_done(share)
        missing = [job for job in share if job.part not in self.reports]
        for number in self.run(missing):
            part = missing[number].part
            self._count(part, part.report())
            self._show_progress(len(share))

    def assemble(self, description: str) -> None:
        """Put the set in its place, after all hosts have written their parts."""
        if self.hosts.count > 1:
            jobs = list(itertools.chain(*self.jobs.values()))
            self._count_done(jobs)
            if missing := [job.part.name for job in jobs if job.part not in self.reports]:
                raise storage.StorageError(
                    f"part {missing[0]} is not in {self.top}, but another host made it: "
                    f"{_NOT_SHARED}"
                )
        splits = {
            split: self._deduplicated(split, [job.part for job in jobs])
            for split, jobs in self.jobs.items()
        }
        set_files.place(self.folder, self.top, splits, description, self.recipe, self.row_format)

    def _create_top(self) -> None:
        """Create the folder of the parts, with a description of their set.

        The folder's name contains a digest of the description, so sets never share a folder. Other
        folders are not removed here because another process may just have created one.
        """
        for top in paths.unfinished(self.folder):
            parts.remove_orphans(top)
            if top != self.top and not _is_empty(top):
                _check_recipe(top, recipes.read(top / _PLAN), self.plan)
        if storage.is_bucket(self.top):
            if not (self.top / _PLAN).exists():
                recipes.write(self.top / _PLAN, self.plan)
        elif not self.top.is_dir():
            self.top.parent.mkdir(parents=True, exist_ok=True)
            with parts.drafts(self.top.parent, "unfinished") as draft:
                recipes.write(draft / _PLAN, self.plan)
                try:
                    draft.rename(self.top)
                except OSError:
                    # Another process may have been first.
                    if not self.top.is_dir():
                        raise

    def _count_done(self, jobs: Sequence[parts.BuildPart]) -> None:
        """Count the complete parts that were not counted before."""
        there = set(storage.held(self.top))
        done = [job.part for job in jobs if job.part.name in there and job.part not in self.reports]
        complete = storage.each(ShardPart.is_done, done)
        done = [part for part, is_done in zip(done, complete, strict=True) if is_done]
        for part, report in zip(done, storage.each(ShardPart.report, done), strict=True):
            self._count(part, report)
        self._show_progress(len(jobs))

    def _count(self, part: ShardPart, report: PartReport) -> None:
        self.reports[part] = report
        self.total.add(report)

    def _show_progress(self, count: int) -> None:
        rejected = self.total.rejected.total()
        self.progress(len(self.reports), count, self.total.kept, rejected)

    def _deduplicated(self, split: str, made: list[ShardPart]) -> SplitParts:
        """The parts of a split without repeated keys, and the report of the split."""
        reports = [self.reports[part] for part in made]
        total = PartReport()
        for report in reports:
            total.add(report)
        if not total.kept:
            if not self.total.kept:
                # Nothing is lost, and a build with other settings can take the name.
                _remove(self.top)
            counts = ", ".join(
                f"{reason} {count} times (such as {total.examples[reason][0]})"
                for reason, count in total.rejected.most_common()
            )
            raise ValueError(f"split {split!r} has no row to keep; rejected: {counts or 'none'}")
        drop = deduplicate.repeated_rows(made, [report.kept for report in reports])
        jobs = {
            made[number]: deduplicate.DeduplicatePart.plan(made[number], drop[number])
            for number in drop
        }
        for _ in self.run(list(jobs.values())):
            pass
        pieces = []
        for part, report in zip(made, reports, strict=True):
            if part in jobs:
                part = jobs[part].part
                total.kept, total.size = total.kept - report.kept, total.size - report.size
                report = part.report()
                total.add(report)
            pieces.append((part, report))
        return SplitParts([(part, report) for part, report in pieces if report.kept], total)


def _is_empty(top: AnyPath) -> bool:
    """Whether a folder of parts contains no part."""
    return storage.held(top) in ([], [_PLAN])


def _remove(top: AnyPath) -> None:
    """Remove the folder of the parts, while another process may do the same."""
    if storage.is_bucket(top):
        with contextlib.suppress(FileNotFoundError):
            top.rmtree(missing_ok=True)
    elif top.exists():
        # Renamed first, so that no other process finds the folder and writes to it.
        with parts.drafts(top.parent, "unfinished") as gone, contextlib.suppress(FileNotFoundError):
            top.rename(gone / top.name)
            # The draft also removes what another process still writes there.
            shutil.rmtree(gone / top.name, ignore_errors=True)
