"""`pea-jax prepare`: make the data set that a config names, and the latents of its pictures."""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from ml_collections import ConfigDict
from rich import filesize
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pea_jax.assembly import data_benchmark, latent_encoder
from pea_jax.assembly.data_factory import TINYWORLD, open_split
from pea_jax.assembly.model_factory import model_dtype
from pea_jax.data.origins import hugging_face, tables, tars, tfds_sets
from pea_jax.data.origins.record import RecordShard
from pea_jax.data.paths import folder_of, is_built, report_file
from pea_jax.data.read.source import Source
from pea_jax.data.write import executors, peek
from pea_jax.data.write.builder import build
from pea_jax.data.write.captions import Cleaning
from pea_jax.data.write.filters import Filters
from pea_jax.data.write.hosts import ALONE, Hosts
from pea_jax.data.write.mapping import FieldMapping
from pea_jax.data.write.parts import Counts
from pea_jax.data.write.rows import Rows, Rules
from pea_jax.runtime import parallel, processes, storage
from pea_jax.runtime.errors import UsageError
from pea_jax.runtime.storage import AnyPath

ORIGINS = ("tars", "table", "hugging_face", "tfds")


class FieldWarning(UserWarning):
    """What a mapping names is in none of the first samples, which changes what rows are."""


def prepare(
    config: ConfigDict,
    workdir: AnyPath | None = None,
    *,
    workers: int | None = None,
    beam_pipeline_options: str | None = None,
    latents: bool = False,
    benchmark: bool = False,
) -> None:
    """Makes the data set of `config.data`, unless it is there, and says what it holds.

    Args:
      config: of the run.
      workdir: not used: data sets lie in `data.data_dir`, for every run.
      workers: processes of a machine that make its share of it; one by default.
      beam_pipeline_options: of the Apache Beam pipeline that makes it instead; see
        `executors.beam_options`.
      latents: make the set of its latents, too.
      benchmark: then read it as training would, for a while, and say how fast that is.

    Raises:
      UsageError: both workers and Beam, or Beam begun by several processes that were joined.
      ValueError: values that cannot be, files that are not there, or a set that is neither there
        nor can be made; and as for `latent_encoder.make`.
    """
    del workdir
    if workers is not None and workers < 1:
        raise UsageError(f"--workers: expected 1 or more, got {workers}")
    if workers is not None and beam_pipeline_options is not None:
        raise UsageError("expected --workers or --beam_pipeline_options, got both")
    hosts = _hosts()
    if hosts.count > 1 and beam_pipeline_options is not None:
        raise UsageError("a Beam pipeline is begun by one process: expected no --distributed")
    run = executors.in_turn
    if beam_pipeline_options is not None:
        run = executors.on_beam(executors.beam_options(beam_pipeline_options))
    elif workers is not None:
        run = executors.processes(workers)
    if config.prepare.origin:
        folder = _make(config, run, hosts)
        if hosts.index == 0:
            _show_report(folder, config.data.dataset)
    elif any(config.prepare.where.values()):
        raise ValueError(f"prepare.origin: expected one of {ORIGINS} beside prepare.where")
    source = open_split(config.data.dataset, config.data.data_dir)
    if hosts.index == 0:
        _show_languages(source, config.data.dataset)
    if latents:
        folder = _make_latents(config, source, hosts)
        if hosts.index == 0:
            _show_latents(folder)
    if benchmark:
        data_benchmark.show(config)


def _hosts() -> Hosts:
    """The processes that were joined; alone, no device is touched to find it out."""
    if not processes.is_distributed():
        return ALONE
    return Hosts(processes.process_index(), processes.process_count(), processes.wait_for_all)


def _show_languages(source: Source, name: str) -> None:
    print(f"{name} is in {source.folder}:")
    for language in source.languages:
        native = len(source.select(native=True, languages=[language]))
        paired = len(source.select(native=False, languages=[language]))
        print(f"  {language}: {paired} parallel rows, {native} native rows")


def _make_latents(config: ConfigDict, source: Source, hosts: Hosts) -> AnyPath:
    platform = parallel.platform(parallel.make_mesh(devices=jax.local_devices()))
    dtype = model_dtype(config.model.dtype, platform)
    with _progress() as progress:
        return latent_encoder.make(config, source, dtype, hosts, progress)


def _show_latents(folder: AnyPath) -> None:
    report = json.loads(report_file(folder).read_text("utf-8"))[latent_encoder.SPLIT]
    bad = sum(report["rejected"].values())
    size = filesize.decimal(sum(report["files"].values()))
    print(f"their latents are in {folder}: {report['kept']} rows, {size}")
    if bad:
        print(f"  {bad} pictures could not be read; examples are in report.json")


def _make(config: ConfigDict, run: executors.Run, hosts: Hosts) -> AnyPath:
    """The folder of the set that `config.prepare` describes, which is built where it is missing."""
    rules = _rules(config)
    wheres = {split: tuple(where) for split, where in config.prepare.where.items() if where}
    splits = {split: _shards(config, split, where) for split, where in wheres.items()}
    _check_apart(splits)
    if not is_built(folder_of(config.data.data_dir, config.data.dataset)):
        _check_fields(config, splits["train"], rules)
    with _progress() as progress:
        return build(
            storage.as_path(config.data.data_dir),
            config.data.dataset,
            {split: [Rows(shard, rules) for shard in found] for split, found in splits.items()},
            f"Made by pea-jax prepare of {config.prepare.origin}.",
            recipe=_recipe(config, splits),
            run=run,
            hosts=hosts,
            progress=progress,
        )


def _rules(config: ConfigDict) -> Rules:
    """How records become rows; refuses what cannot be, all of it in one raise."""
    settings, problems, made = config.prepare, [], []
    if settings.origin not in ORIGINS:
        problems.append(f"origin: expected one of {ORIGINS}, got {settings.origin!r}")
    if not settings.where.train:
        problems.append("where.train: expected a name or more, got none")
    for split, where in settings.where.items():
        if wrong := [name for name in where if not isinstance(name, str) or not name]:
            problems.append(f"where.{split}: expected names, got {wrong[0]!r}")
    if settings.rows_per_shard < 1:
        problems.append(f"rows_per_shard: expected 1 or more, got {settings.rows_per_shard}")
    parts = ((FieldMapping, "mapping"), (Cleaning, "captions"), (Filters, "filters"))
    for part, name in parts:
        try:
            made.append(part(**settings[name]))
        except ValueError as error:
            problems.append(str(error))
    problems = [f"prepare.{problem}" for problem in problems]
    if config.data.dataset == TINYWORLD:
        problems.append(f"data.dataset: expected a name for what is made, got {TINYWORLD!r}")
    if problems:
        raise ValueError("; ".join(problems))
    return Rules(*made)


def _shards(config: ConfigDict, split: str, where: Sequence[str]) -> Sequence[RecordShard]:
    settings = config.prepare
    cut = settings.image, settings.rows_per_shard
    match settings.origin:
        case "tars":
            return tars.shards(where)
        case "table":
            return tables.shards(where, *cut)
        case "hugging_face":
            return hugging_face.shards(where, split, *cut)
        case "tfds":
            return tfds_sets.shards(where, split, *cut, config.data.data_dir)


def _check_apart(splits: Mapping[str, Sequence[RecordShard]]) -> None:
    """No row is in two splits, as far as that is seen from what they are read from."""
    seen: dict[str, str] = {}
    for split, shards in splits.items():
        for source in {shard.source for shard in shards}:
            if source in seen:
                raise ValueError(f"{source} is in prepare.where.{seen[source]} and .{split}")
            seen[source] = split


def _check_fields(config: ConfigDict, shards: Sequence[RecordShard], rules: Rules) -> None:
    """The fields that are named are in the first samples: else it would take hours to see."""
    image = "" if config.prepare.origin == "tars" else config.prepare.image
    found = peek.samples(shards)
    errors, warned = peek.missing(found, image, rules.mapping, rules.filters)
    if errors:
        raise ValueError("; ".join(errors))
    for line in warned:
        warnings.warn(line, FieldWarning, stacklevel=2)


def _recipe(config: ConfigDict, splits: Mapping[str, Sequence[RecordShard]]) -> dict[str, Any]:
    """What decides which rows the set has: settings, and a digest of what is read."""
    recipe = config.prepare.to_dict()
    if config.prepare.origin == "tars":
        del recipe["image"], recipe["rows_per_shard"]
    digests = {
        split: hashlib.sha256("\n".join(map(repr, shards)).encode()).hexdigest()
        for split, shards in splits.items()
    }
    return {**recipe, "names_and_sizes_of_files": digests}


@contextmanager
def _progress() -> Iterator[Callable[[int, int, Counts], None]]:
    """A bar of the shards that are done, with rows kept and rejected so far, and rows a second."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("shards, {task.fields[told]}"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("", total=None, told="")
    begun: list[tuple[float, int]] = []

    def show(done: int, shards: int, counts: Counts) -> None:
        rejected = sum(counts.rejected.values())
        rows, now = counts.kept + rejected, time.monotonic()
        if not begun:
            begun.append((now, rows))
            bar.start()
        seconds = now - begun[0][0]
        pace = (rows - begun[0][1]) / seconds if seconds else 0.0
        told = f"{counts.kept:,} kept, {rejected:,} rejected, {pace:,.0f} rows/s"
        bar.update(task, completed=done, total=shards, told=told)

    try:
        yield show
    finally:
        # What is refused before anything is made has no bar.
        if begun:
            bar.stop()


def _show_report(folder: AnyPath, name: str) -> None:
    """Prints what was kept and what was not, and why."""
    report = json.loads(report_file(folder).read_text(encoding="utf-8"))
    console = Console()
    for split, counts in report.items():
        table = Table("", "rows", "such as", title=f"{name}, {split}")
        table.columns[1].justify = "right"
        table.add_row("kept", f"{counts['kept']:,}", "", end_section=True)
        for reason, count in counts["rejected"].items():
            table.add_row(reason, f"{count:,}", counts["examples"][reason][0])
        console.print(table)
    if any(counts["rejected"] for counts in report.values()):
        print(f"more examples are in {report_file(folder)}")
