"""Builds data sets: rows in, a TFDS data set (ArrayRecord) out.

Every shard becomes a part (parts.py), which lies beside the set's place until all are there. Then
the set is put together from them and appears whole or not at all: a build that was stopped, at any
moment, goes on where it was. Next to the records of a split lies its index, one small record a row,
from which the rows of a language and kind are chosen without reading any image.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

import pea_jax
from pea_jax.data import paths, schema
from pea_jax.data.write import deduplicate, parts
from pea_jax.data.write import recipe as recipes
from pea_jax.data.write.executors import Run, WorkerError, in_turn
from pea_jax.data.write.hosts import ALONE, Hosts
from pea_jax.data.write.parts import Counts, Part, Report, Shard
from pea_jax.runtime import storage
from pea_jax.runtime.storage import AnyPath

#: What the parts of an unfinished set are of.
_PLAN = "plan.json"

_APART = "hosts make a set together in a storage that all of them share"

#: Is told how many parts are done, of how many, and what became of their rows.
Progress = Callable[[int, int, Counts], None]


def build(
    data_dir: AnyPath | str,
    name: str,
    splits: Mapping[str, Sequence[Shard]],
    description: str = "",
    *,
    recipe: Mapping[str, Any] | None = None,
    form: schema.Form = schema.PICTURES,
    run: Run = in_turn,
    hosts: Hosts = ALONE,
    progress: Progress | None = None,
) -> AnyPath:
    """Writes a data set, unless it is there already; goes on with one that was begun.

    Rows without a caption, without an English caption where one is needed, without a language or
    an image are left out and counted in ``report.json``, and so are rows whose key an earlier row
    of their split has (see `repeats.find`).

    Args:
      data_dir: holds all data sets.
      name: of the data set, lower case with underscores.
      splits: by name, for each shard a function that yields its rows, which are written as they
        come. Rows keep the order of shards and of rows in them.
      description: goes into the set's dataset_info.json.
      recipe: what the rows are made from, as JSON can hold it: a set is never made from two.
      form: how the rows that the shards yield are stored.
      run: who makes the parts: `executors.in_turn`, `processes(n)` or `on_beam(options)`.
      hosts: that call this together, each to make its share of the parts.
      progress: called with what is done of this host's share at the beginning, and after each part;
        of several hosts the first calls it in the end with what all have done.

    Returns:
      The folder of the finished set: data_dir/name/version.

    Raises:
      ValueError: a split keeps no row, the set or what was begun of it is of another recipe, a
        name can't be, or the set's place is taken by something else. Whatever a shard raises, too:
        the parts that are done stay for the next call.
      StorageError: hosts don't see each other's parts, and as storages raise.
    """
    folder = paths.folder_of(data_dir, name)
    if not storage.is_bucket(folder):
        folder = folder.absolute()
    wanted = recipes.as_json(recipe)
    _check_names(name, splits)
    parts.remove_orphans(folder.parent)
    taken = not storage.is_bucket(folder) and folder.exists()
    if taken and not paths.is_built(folder):
        raise ValueError(f"{folder} is in the way: it holds no data set, remove it")
    work = _Build(folder, splits, wanted, form, run, hosts, progress or _no_progress)
    _unless_built(folder, work.make_parts)
    hosts.wait(f"parts of {name}")
    if hosts.index == 0:
        _unless_built(folder, lambda: work.put_together(description))
    hosts.wait(name)
    if not paths.is_built(folder):
        raise storage.StorageError(f"{folder} is not there, but the first host made it: {_APART}")
    if wanted is not None:
        there = recipes.read(paths.recipe_file(folder))
        _check_recipe(folder, there, wanted)
    for top in paths.unfinished(folder) if hosts.index == 0 else ():
        if top == work.top or _is_empty(top):
            _remove(top)
    return folder


def _unless_built(folder: AnyPath, do: Callable[[], None]) -> None:
    """Does a part of the work for a set, unless it is there."""
    try:
        if not paths.is_built(folder):
            do()
    except (OSError, WorkerError):
        # Another process that built the same set was first to put it in its place, and has removed
        # the parts.
        if not paths.is_built(folder):
            raise


def _no_progress(done: int, shards: int, counts: Counts) -> None:
    pass


def _check_names(name: str, splits: Mapping[str, Sequence[Shard]]) -> None:
    wrong = [] if re.fullmatch(r"[a-z][a-z0-9_]*", name) else [f"data set {name!r}"]
    wrong += [f"split {split!r}" for split in splits if not re.fullmatch(r"[a-z]\w*", split)]
    if wrong or not splits:
        got = ", ".join(wrong) or "no split"
        raise ValueError(f"expected names of lower case letters, digits and underscores, got {got}")


def _check_recipe(folder: AnyPath, there: Any, now: Any) -> None:
    if told := recipes.difference(there, now):
        raise ValueError(
            f"{folder} was made from something else: {told}. Remove it, or give the new data set "
            "another name"
        )


class _Build:
    """One call of `build` for a set that is not there."""

    def __init__(
        self,
        folder: AnyPath,
        splits: Mapping[str, Sequence[Shard]],
        recipe: Any,
        form: schema.Form,
        run: Run,
        hosts: Hosts,
        progress: Progress,
    ):
        shards = {split: len(shards) for split, shards in splits.items()}
        self.plan = {"pea_jax": pea_jax.__version__, "shards": shards, "recipe": recipe}
        digest = hashlib.sha256(json.dumps(self.plan, sort_keys=True).encode()).hexdigest()[:10]
        self.folder, self.top = folder, paths.parts_folder(folder, digest)
        self.recipe, self.form = recipe, form
        self.run, self.hosts, self.progress = run, hosts, progress
        self.jobs = {
            split: [
                parts.Making(Part(str(self.top), f"{split}-{number:05d}"), shard, form)
                for number, shard in enumerate(some)
            ]
            for split, some in splits.items()
        }
        self.reports: dict[Part, Report] = {}
        self.total = Report()

    def make_parts(self) -> None:
        """Makes what is missing of this host's share."""
        self._begin()
        share = self.hosts.share(list(itertools.chain(*self.jobs.values())))
        self._look(share)
        todo = [job for job in share if job.part not in self.reports]
        for number in self.run(todo):
            part = todo[number].part
            self._count(part, part.report())
            self.progress(len(self.reports), len(share), self.total.counts)

    def put_together(self, description: str) -> None:
        """Puts the set in its place, when all hosts have made their shares."""
        if self.hosts.count > 1:
            jobs = list(itertools.chain(*self.jobs.values()))
            self._look(jobs)
            if missing := [job.part.name for job in jobs if job.part not in self.reports]:
                raise storage.StorageError(
                    f"part {missing[0]} is not in {self.top}, but another host made it: {_APART}"
                )
        pieces, told = {}, {}
        for split, jobs in self.jobs.items():
            made = [job.part for job in jobs]
            reports = [self.reports[part] for part in made]
            pieces[split], told[split] = self._thinned(split, made, reports)
        self._place_set(description, pieces, told)

    def _begin(self) -> None:
        """Have a folder for the parts, which says what they are of.

        Its name has a digest of that, so that none is in another's way, and none is removed here:
        another process may have begun it just now.
        """
        for top in paths.unfinished(self.folder):
            parts.remove_orphans(top)
            if top != self.top and not _is_empty(top):
                _check_recipe(top, recipes.read(top / _PLAN), self.plan)
        if storage.is_bucket(self.top):
            if not (self.top / _PLAN).exists():
                recipes.write(self.top / _PLAN, self.plan)
        elif not self.top.is_dir():
            self._begin_on_disk()

    def _begin_on_disk(self) -> None:
        self.top.parent.mkdir(parents=True, exist_ok=True)
        with parts.drafts(self.top.parent, "unfinished") as draft:
            recipes.write(draft / _PLAN, self.plan)
            try:
                draft.rename(self.top)
            except OSError:
                # Of two at once, one is first.
                if not self.top.is_dir():
                    raise

    def _look(self, jobs: Sequence[parts.Making]) -> None:
        """Counts the parts that are done and were not counted."""
        there = set(storage.held(self.top))
        made = [job.part for job in jobs if job.part.name in there and job.part not in self.reports]
        whole = storage.each(Part.is_done, made)
        made = [part for part, done in zip(made, whole, strict=True) if done]
        for part, report in zip(made, storage.each(Part.report, made), strict=True):
            self._count(part, report)
        self.progress(len(self.reports), len(jobs), self.total.counts)

    def _count(self, part: Part, report: Report) -> None:
        self.reports[part] = report
        self.total.add(report)

    def _thinned(
        self, split: str, made: list[Part], reports: list[Report]
    ) -> tuple[list[tuple[Part, Report]], Report]:
        """The parts of a split, no key twice, with the report of each; and that of the split."""
        told = Report()
        for report in reports:
            told.add(report)
        if not told.kept:
            if not self.total.kept:
                # Nothing is lost, and the next try, with other settings, has its way.
                _remove(self.top)
            counts = ", ".join(
                f"{reason} {count} times (such as {told.examples[reason][0]})"
                for reason, count in told.rejected.most_common()
            )
            raise ValueError(f"split {split!r} has no row to keep; rejected: {counts or 'none'}")
        drop = deduplicate.find(made, [report.kept for report in reports])
        jobs = [deduplicate.Thinning.plan(made[number], drop[number]) for number in drop]
        for _ in self.run(jobs):
            pass
        thinned = {job.source: job.part for job in jobs}
        pieces = []
        for part, report in zip(made, reports, strict=True):
            if part in thinned:
                part = thinned[part]
                told.kept, told.size = told.kept - report.kept, told.size - report.size
                report = part.report()
                told.add(report)
            pieces.append((part, report))
        return [(part, report) for part, report in pieces if report.kept], told

    def _place_set(
        self,
        description: str,
        pieces: Mapping[str, list[tuple[Part, Report]]],
        told: Mapping[str, Report],
    ) -> None:
        """Puts the set in its place."""
        name, report, infos, placed = self.folder.parent.name, {}, [], []
        with parts.drafts(self.top, "set") as draft:
            target = self.folder if storage.is_bucket(self.folder) else draft
            for split, some in pieces.items():
                template = paths.template(name, split)
                files = [
                    template.sharded_filepath(shard_index=number, num_shards=len(some)).name
                    for number in range(len(some))
                ]
                for (part, each), file in zip(some, files, strict=True):
                    placed.append((part.folder / parts.RECORDS, target / file, each.size))
                lengths = [each.kept for _, each in some]
                infos.append(tfds.core.SplitInfo(split, lengths, told[split].size, template))
                _write_index(
                    paths.index_file(draft, split), [part for part, _ in some], sum(lengths)
                )
                sizes = [each.size for _, each in some]
                report[split] = {
                    "kept": told[split].kept,
                    "rejected": dict(sorted(told[split].rejected.items())),
                    "examples": dict(sorted(told[split].examples.items())),
                    "files": dict(zip(files, sizes, strict=True)),
                    "digest": _digest([each for _, each in some]),
                }
            for _ in storage.each(_place, placed):
                pass
            text = json.dumps(report, indent=2, ensure_ascii=False)
            paths.report_file(draft).write_text(text, encoding="utf-8")
            if self.recipe is not None:
                recipes.write(paths.recipe_file(draft), self.recipe)
            paths.write_info(draft, name, description, self.form, infos)
            if target is draft:
                parts.sync(draft)
                draft.rename(self.folder)
                return
            mine = {file.name for _, file, _ in placed}
            for file in storage.held(self.folder):
                # Of another build that was stopped here.
                if file.startswith(f"{name}-") and file not in mine:
                    (self.folder / file).unlink()
            for file in sorted(storage.held(draft), key=lambda file: (file == paths.MARK, file)):
                storage.copy(draft / file, self.folder / file)


def _digest(reports: Sequence[Report]) -> str:
    """Of all the records of a split, however often it is made from the same rows."""
    digests = "\n".join(report.digest for report in reports)
    return hashlib.sha256(digests.encode()).hexdigest()


def _write_index(file: Path, made: Sequence[Part], rows: int) -> None:
    """Joins the indices of parts, on the disk."""
    index = np.lib.format.open_memmap(file, mode="w+", dtype=schema.INDEX_DTYPE, shape=(rows,))
    start = 0
    for some in parts.indices(made):
        index[start : start + len(some)] = some
        start += len(some)
    index.flush()


def _place(piece: tuple[AnyPath, AnyPath, int]) -> None:
    """Gives the records of a part their name in the set: (records, target, bytes)."""
    source, target, size = piece
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


def _is_empty(top: AnyPath) -> bool:
    """Whether nothing came of what was begun there."""
    return storage.held(top) in ([], [_PLAN])


def _remove(top: AnyPath) -> None:
    """Removes the folder of the parts; another process may be at it, too."""
    if storage.is_bucket(top):
        with contextlib.suppress(FileNotFoundError):
            top.rmtree(missing_ok=True)
    elif top.exists():
        # Who still writes to it must not find it any more.
        with parts.drafts(top.parent, "unfinished") as gone, contextlib.suppress(FileNotFoundError):
            top.rename(gone / top.name)
            # What others were about to put there when it lost its name goes with the draft.
            shutil.rmtree(gone / top.name, ignore_errors=True)
