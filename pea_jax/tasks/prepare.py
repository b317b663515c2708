"""`pea-jax prepare`: builds the data set of a config, and its cached latents."""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
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
from pea_jax.data.origins import ORIGINS
from pea_jax.data.origins.record import RecordShard
from pea_jax.data.paths import folder_of, is_built, report_file
from pea_jax.data.read.source import Source
from pea_jax.data.write import builder, executors, peek
from pea_jax.data.write.captions import Cleaning
from pea_jax.data.write.filters import Filters
from pea_jax.data.write.hosts import ALONE, Hosts
from pea_jax.data.write.mapping import FieldMapping
from pea_jax.data.write.rows import RowShard, Rules
from pea_jax.runtime import parallel, processes, storage
from pea_jax.runtime.errors import UsageError
from pea_jax.runtime.storage import AnyPath


class FieldWarning(UserWarning):
    """The first samples lack a configured field, which changes rows but may be intended."""


def prepare(
    config: ConfigDict,
    workdir: AnyPath | None = None,
    *,
    workers: int | None = None,
    beam_pipeline_options: str | None = None,
    latents: bool = False,
    benchmark: bool = False,
) -> None:
    """Builds the data set of `config.data` unless it exists, and prints what it holds.

    Args:
      config: of the run.
      workdir: not used; data sets are in `data.data_dir`, for all runs.
      workers: processes of this machine; one by default.
      beam_pipeline_options: options of an Apache Beam pipeline that replaces the processes; see
        `executors.beam_options`.
      latents: also make the set of cached latents.
      benchmark: then measure how fast training could read the set.

    Raises:
      UsageError: both workers and Beam, or Beam with several joined processes.
      ValueError: invalid values, missing files, or a set that neither exists nor can be built; and
        as for `latent_encoder.make`.
    """
    del workdir
    if workers is not None and workers < 1:
        raise UsageError(f"--workers: expected 1 or more, got {workers}")
    if workers is not None and beam_pipeline_options is not None:
        raise UsageError("expected --workers or --beam_pipeline_options, got both")
    hosts = _hosts()
    if hosts.count > 1 and beam_pipeline_options is not None:
        raise UsageError("a Beam pipeline is begun by one process: expected no --distributed")
    run = executors.serial
    if beam_pipeline_options is not None:
        run = executors.on_beam(executors.beam_options(beam_pipeline_options))
    elif workers is not None:
        run = executors.processes(workers)
    if config.prepare.origin:
        folder = _build(config, run, hosts)
        if hosts.index == 0:
            _show_report(folder, config.data.dataset)
    elif any(config.prepare.where.values()):
        raise ValueError(f"prepare.origin: expected one of {tuple(ORIGINS)} beside prepare.where")
    source = open_split(config.data.dataset, config.data.data_dir)
    if hosts.index == 0:
        _show_languages(source, config.data.dataset)
    if latents:
        _make_latents(config, source, hosts)
    if benchmark:
        data_benchmark.show(config)


def _hosts() -> Hosts:
    """The joined processes. Without them, no device is initialised."""
    if not processes.is_distributed():
        return ALONE
    return Hosts(processes.process_index(), processes.process_count(), processes.wait_for_all)


def _show_languages(source: Source, name: str) -> None:
    print(f"{name} is in {source.folder}:")
    for language in source.languages:
        native = len(source.select(native=True, languages=[language]))
        paired = len(source.select(native=False, languages=[language]))
        print(f"  {language}: {paired} parallel rows, {native} native rows")


def _make_latents(config: ConfigDict, source: Source, hosts: Hosts) -> None:
    """Make the set of cached latents unless it exists; the first host prints its size."""
    platform = parallel.platform(parallel.make_mesh(devices=jax.local_devices()))
    dtype = model_dtype(config.model.dtype, platform)
    with _progress() as progress:
        folder = latent_encoder.make(config, source, dtype, hosts, progress)
    if hosts.index > 0:
        return
    report = json.loads(report_file(folder).read_text("utf-8"))[latent_encoder.SPLIT]
    bad = sum(report["rejected"].values())
    size = filesize.decimal(sum(report["files"].values()))
    print(f"their latents are in {folder}: {report['kept']} rows, {size}")
    if bad:
        print(f"  {bad} pictures could not be read; examples are in report.json")


def _build(config: ConfigDict, run: executors.Executor, hosts: Hosts) -> AnyPath:
    """The folder of the set that `config.prepare` describes; builds a missing set."""
    rules, settings = _rules(config), config.prepare
    splits = {
        split: ORIGINS[settings.origin].shards(
            tuple(where),
            split=split,
            image=settings.image,
            rows_per_shard=settings.rows_per_shard,
            data_dir=config.data.data_dir,
        )
        for split, where in settings.where.items()
        if where
    }
    _check_disjoint(splits)
    if not is_built(folder_of(config.data.data_dir, config.data.dataset)):
        _check_fields(config, splits["train"], rules)
    with _progress() as progress:
        return builder.build(
            storage.as_path(config.data.data_dir),
            config.data.dataset,
            {split: [RowShard(shard, rules) for shard in some] for split, some in splits.items()},
            f"Made by pea-jax prepare of {settings.origin}.",
            recipe=_recipe(config, splits),
            run=run,
            hosts=hosts,
            progress=progress,
        )


def _rules(config: ConfigDict) -> Rules:
    """The rules of the config; raises one error for all invalid values."""
    settings, problems, rules = config.prepare, [], []
    if settings.origin not in ORIGINS:
        problems.append(f"origin: expected one of {tuple(ORIGINS)}, got {settings.origin!r}")
    if not settings.where.train:
        problems.append("where.train: expected a name or more, got none")
    for split, where in settings.where.items():
        if wrong := [name for name in where if not isinstance(name, str) or not name]:
            problems.append(f"where.{split}: expected names, got {wrong[0]!r}")
    if settings.rows_per_shard < 1:
        problems.append(f"rows_per_shard: expected 1 or more, got {settings.rows_per_shard}")
    for kind, name in ((FieldMapping, "mapping"), (Cleaning, "captions"), (Filters, "filters")):
        try:
            rules.append(kind(**settings[name]))
        except ValueError as error:
            problems.append(str(error))
    problems = [f"prepare.{problem}" for problem in problems]
    if config.data.dataset == TINYWORLD:
        problems.append(f"data.dataset: expected a name for what is made, got {TINYWORLD!r}")
    if problems:
        raise ValueError("; ".join(problems))
    return Rules(*rules)


def _check_disjoint(splits: Mapping[str, Sequence[RecordShard]]) -> None:
    """No file, and no split of a set, is in two splits."""
    seen: dict[str, str] = {}
    for split, shards in splits.items():
        for source in {shard.source for shard in shards}:
            if source in seen:
                raise ValueError(f"{source} is in prepare.where.{seen[source]} and .{split}")
            seen[source] = split


def _check_fields(config: ConfigDict, shards: Sequence[RecordShard], rules: Rules) -> None:
    """Check the first samples for the configured fields, before a build that may take hours."""
    image = config.prepare.image if "image" in ORIGINS[config.prepare.origin].settings else ""
    errors, lines = peek.missing(peek.samples(shards), image, rules.mapping, rules.filters)
    if errors:
        raise ValueError("; ".join(errors))
    for line in lines:
        warnings.warn(line, FieldWarning, stacklevel=2)


def _recipe(config: ConfigDict, splits: Mapping[str, Sequence[RecordShard]]) -> dict[str, Any]:
    """What determines the rows of the set: the settings, and a digest of the shards.

    A change of the recipe for unchanged settings and files would disown existing sets.
    """
    recipe = config.prepare.to_dict()
    for name in {"image", "rows_per_shard"}.difference(ORIGINS[config.prepare.origin].settings):
        del recipe[name]
    digests = {
        split: hashlib.sha256("\n".join(map(repr, shards)).encode()).hexdigest()
        for split, shards in splits.items()
    }
    return {**recipe, "names_and_sizes_of_files": digests}


@contextmanager
def _progress() -> Iterator[builder.Progress]:
    """A bar of finished shards, with counts of kept and rejected rows, and rows per second."""
    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("shards, {task.description}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    task, first = bar.add_task("", start=False, total=None), 0

    def show(done: int, shards: int, kept: int, rejected: int) -> None:
        nonlocal first
        # The bar starts with the build: errors before it print one line without a bar.
        if not bar.live.is_started:
            first = kept + rejected
            bar.start()
            bar.start_task(task)
        seconds = bar.tasks[0].elapsed
        rate = (kept + rejected - first) / seconds if seconds else 0.0
        description = f"{kept:,} kept, {rejected:,} rejected, {rate:,.0f} rows/s"
        bar.update(task, completed=done, total=shards, description=description)

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()


def _show_report(folder: AnyPath, name: str) -> None:
    """Print the counts of kept rows and of each reason for rejecting rows."""
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
