"""The command line: `pea-jax COMMAND --config NAME --workdir DIR [--config.path.to.field=value]`.

Importing this module and printing help imports no jax: a task is imported when it runs.
"""

import argparse
import contextlib
import importlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from pea_jax.cli import config as configs
from pea_jax.cli.commands import COMMANDS, parse
from pea_jax.runtime import storage
from pea_jax.runtime.errors import UsageError
from pea_jax.runtime.storage import AnyPath

_PACKAGE = Path(__file__).parent.parent

#: Libraries whose logs are hidden without --verbose: their errors come as one line anyway.
_LOGGERS = ("pea_jax", "absl", "jax", "orbax", "grain", "gcsfs", "fsspec", "google", "asyncio")

#: The number of lines of a message that are shown without --debug.
_SHOWN_LINES = 9


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (without the program's name) and return its exit status.

    0: done. 1: the task failed, with the reason in one line. 2: wrong usage. 130: Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    program = " ".join(["pea-jax", *(word for word in argv[:1] if word in COMMANDS)])
    debug = "--debug" in argv
    with warnings.catch_warnings():
        try:
            arguments, overrides = parse(argv)
            if arguments.help or not arguments.command:
                print(_help(arguments))
                return 0 if arguments.help else 2
            with storage.faults():
                return _run(arguments, overrides)
        except KeyboardInterrupt as interrupt:
            _complain(program, str(interrupt) or "interrupted")
            return _leave(130)
        except (ValueError, OSError, FloatingPointError) as error:
            if debug:
                traceback.print_exc()
            _complain(program, _one_line(error, everything=debug))
            return _leave(2 if isinstance(error, UsageError) else 1)
        except Exception as error:
            if not _joined():
                raise
            # Most often another process has ended, and a collective failed with it.
            if debug or not isinstance(error, RuntimeError):
                traceback.print_exc()
            reason = _one_line(error)
            _complain(program, f"lost the other processes, or failed beside them: {reason}")
            return _leave(1)


def _help(arguments: argparse.Namespace) -> str:
    lines = [arguments.parser.format_help().rstrip()]
    if getattr(arguments, "config", None):
        lines += ["", "fields of the config:", *configs.listed(configs.load(arguments.config))]
    return "\n".join(lines)


def _joined() -> bool:
    """Whether this is one process of several, as far as that is known yet."""
    processes = sys.modules.get("pea_jax.runtime.processes")
    return processes is not None and processes.is_distributed()


def _leave(status: int) -> int:
    """The exit status. One process of several exits at once, without waiting for the others.

    They may be waiting for this one, and notice its end when its heartbeats stop.
    """
    if _joined():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Run the task of a command."""
    name, command = arguments.command, COMMANDS[arguments.command]
    if missing := [need for need in command.required if not getattr(arguments, need)]:
        shown = [need.upper() if need == "file" else f"--{need}" for need in missing]
        raise UsageError(f"expected {' and '.join(shown)}")
    own = {option: getattr(arguments, option) for option in command.names}
    if own.get("output"):
        own["output"] = storage.as_path(own["output"])
    with _quiet(name, loud=arguments.verbose):
        if not command.takes_config:
            if overrides:
                raise UsageError(f"unexpected {' '.join(overrides)!r}")
            own["file"] = storage.local(own["file"], "FILE")
            getattr(importlib.import_module(f"pea_jax.tasks.{name}"), name)(**own)
            return 0
        workdir = storage.as_path(arguments.workdir) if arguments.workdir else None
        config = configs.override(_config(arguments.config, workdir), overrides)
        task = importlib.import_module(f"pea_jax.tasks.{name}")
        if "prompts" in own:
            own["prompts"] = _prompts(task, own.pop("prompts"), own.pop("prompt"))
        _start_jax(config, distributed=arguments.distributed, preemptible=name == "train")
        getattr(task, name)(config, workdir, **own)
    return 0


def _config(name: str | None, workdir: AnyPath | None) -> ConfigDict:
    """The config of this name or file; without one the config of the run in the workdir."""
    if name:
        return configs.load(name)
    if workdir is None:
        raise UsageError("expected --config, or the --workdir of a run")
    checkpoint = importlib.import_module("pea_jax.runtime.checkpoint")
    return configs.from_json(checkpoint.read_config(workdir))


def _prompts(sample: ModuleType, file: str | None, prompts: list[str]) -> list[str]:
    if bool(file) == bool(prompts):
        raise UsageError("expected either --prompts FILE or --prompt TEXT")
    return prompts or sample.read_prompts(storage.as_path(file))


def _start_jax(config: ConfigDict, *, distributed: bool | None, preemptible: bool) -> None:
    """Join the other hosts, where there are some; find the programs that earlier runs compiled."""
    importlib.import_module("pea_jax.runtime.processes").initialize(
        distributed=distributed,
        preemptible=preemptible,
        join_timeout=config.mesh.join_timeout,
        heartbeat_timeout=config.mesh.heartbeat_timeout,
    )
    if config.train.compilation_cache:
        folder = storage.as_path(config.train.compilation_cache)
        importlib.import_module("jax").config.update("jax_compilation_cache_dir", str(folder))


@contextlib.contextmanager
def _quiet(command: str, *, loud: bool) -> Iterator[None]:
    """Show the warnings of this package, one line each, and those of libraries only if `loud`."""
    if loud:
        logging.basicConfig(level=logging.INFO)
        yield
        return
    # The libraries read these when they are first imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

    def show(message: Warning | str, *_: object, **__: object) -> None:
        _complain(f"pea-jax {command}: warning", _one_line(message))

    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: show(record.getMessage())
    # Libraries and this package share absl's logger.
    handler.addFilter(
        lambda record: (
            record.name.startswith("pea_jax") or Path(record.pathname).is_relative_to(_PACKAGE)
        )
    )
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger, logger.propagate) for logger in loggers]
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module=r"pea_jax($|\.)")
    warnings.showwarning = show
    for logger in loggers:
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, propagate in before:
            logger.propagate = propagate
            logger.removeHandler(handler)


def _complain(program: str, message: str) -> None:
    print(f"{program}: {message}", file=sys.stderr, flush=True)


def _one_line(error: Exception | str, *, everything: bool = False) -> str:
    """The message of an error without line breaks; a long list is cut."""
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name]
        return ": ".join([*names, error.strerror])
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    cut = len(lines) - _SHOWN_LINES
    if cut > 0 and not everything:
        lines = [*lines[:_SHOWN_LINES], f"and {cut} more (--debug shows them)"]
    return " ".join([lines[0], "; ".join(lines[1:])]).strip()
