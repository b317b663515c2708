"""The command line: `pea-jax VERB --config FILE --workdir DIR [--config.path.to.field=value]`.

Importing this module, and asking for help, imports no jax: a task is loaded when it is run.
"""

import contextlib
import difflib
import importlib
import logging
import os
import sys
import textwrap
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from absl import flags
from ml_collections import ConfigDict

from pea_jax.cli import config as configs
from pea_jax.cli.commands import VERBS, define, own_flags
from pea_jax.runtime import storage
from pea_jax.runtime.errors import UsageError
from pea_jax.runtime.storage import AnyPath

_PACKAGE = Path(__file__).parent.parent

#: Of libraries that log what is told in one line by an error, or by nobody.
_LOGGERS = ("pea_jax", "absl", "jax", "orbax", "grain", "gcsfs", "fsspec", "google", "asyncio")

#: How many of a message's lines are shown without --debug.
_SHOWN_LINES = 9


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (without the program's name) and return its exit status.

    0 done; 1 the task cannot go on, said in one line; 2 the command line cannot be; 130 Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"pea-jax {importlib.import_module('pea_jax').__version__}")
        return 0
    verb, said = argv[0], f"pea-jax {argv[0]}"
    debug = "--debug" in argv
    with warnings.catch_warnings():
        try:
            if verb not in VERBS:
                said = "pea-jax"
                raise UsageError(f"no verb {verb!r}; expected one of {', '.join(VERBS)}")
            if any(word in ("-h", "--help") for word in argv):
                print(_help(verb, argv[1:]))
                return 0
            with storage.faults():
                return _run(verb, argv[1:])
        except KeyboardInterrupt as interrupt:
            _complain(said, str(interrupt) or "interrupted")
            return _leave(130)
        except (ValueError, OSError, FloatingPointError, flags.Error) as error:
            if debug:
                traceback.print_exc()
            _complain(said, _one_line(error, everything=debug))
            return _leave(2 if isinstance(error, UsageError | flags.Error) else 1)
        except Exception as error:
            if not _joined():
                raise
            # Most often another process is gone, and a collective with it.
            if debug or not isinstance(error, RuntimeError):
                traceback.print_exc()
            _complain(said, f"lost the other processes, or failed beside them: {_one_line(error)}")
            return _leave(1)


def _joined() -> bool:
    """Whether this is one process of several, as far as that is known yet."""
    processes = sys.modules.get("pea_jax.runtime.processes")
    return processes is not None and processes.is_distributed()


def _leave(status: int) -> int:
    """The exit status; a process of several ends here and now, and does not wait for the others.

    They may be waiting for it: they learn that it is gone when its heartbeats stay away.
    """
    if _joined():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def parse(verb: str, arguments: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
    """The verb's flags, and what is left: the overrides of the config."""
    values = define(verb)
    known = list(values)
    for argument in arguments:
        name = argument.split("=", 1)[0].lstrip("-")
        if argument.startswith("--") and not name.startswith("config.") and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean --{close[0]}?" if close else ""
            raise UsageError(f"no flag --{name}{hint}")
    rest = values(["pea-jax", *arguments], known_only=True)[1:]
    return values, rest


def _run(verb: str, arguments: Sequence[str]) -> int:
    """Parse the arguments of a verb and run its task."""
    values, rest = parse(verb, arguments)
    missing = [name for name in VERBS[verb].required if not values[name].value]
    if missing:
        raise UsageError("expected " + " and ".join(f"--{name}" for name in missing))
    own = {name.replace("-", "_"): values[name].value for name in own_flags(verb)}
    if own.get("output"):
        own["output"] = storage.as_path(own["output"])
    if positional := VERBS[verb].positional:
        source = _only(rest, positional)
        with _quiet(verb, loud=values["verbose"].value):
            task = importlib.import_module(f"pea_jax.tasks.{verb}")
            getattr(task, verb)(source, **own)
        return 0
    workdir = storage.as_path(values["workdir"].value) if values["workdir"].value else None
    with _quiet(verb, loud=values["verbose"].value):
        config = configs.override(_config(values["config"].value, workdir), rest)
        task = importlib.import_module(f"pea_jax.tasks.{verb}")
        if "prompts" in own:
            own["prompts"] = _prompts(task, own.pop("prompts"), own.pop("prompt"))
        _start_jax(config, distributed=values["distributed"].value, preemptible=verb == "train")
        getattr(task, verb)(config, workdir, **own)
    return 0


def _only(arguments: Sequence[str], name: str) -> Path:
    """The one argument that is left when the flags are taken out."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        got = " ".join(arguments)
        raise UsageError(f"expected one {name.upper()}, got {repr(got) if got else 'none'}")
    return storage.local(arguments[0], name.upper())


def _config(file: str | None, workdir: AnyPath | None) -> ConfigDict:
    """The config of a file; or else that of the run in the workdir."""
    if file:
        return configs.load(storage.local(file, "--config"))
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
def _quiet(verb: str, *, loud: bool) -> Iterator[None]:
    """Show the warnings of this package, one line each; those of libraries only where asked for."""
    if loud:
        logging.basicConfig(level=logging.INFO)
        yield
        return
    # Read by the libraries when they are first imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

    def show(message: Warning | str, *_: object, **__: object) -> None:
        _complain(f"pea-jax {verb}: warning", _one_line(message))

    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: show(record.getMessage())
    # absl's logger serves libraries and this package alike.
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


def _complain(said: str, what: str) -> None:
    print(f"{said}: {what}", file=sys.stderr, flush=True)


def _one_line(error: Exception | str, *, everything: bool = False) -> str:
    """The message of an error without line breaks, a long list cut."""
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


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    examples = [f"  pea-jax {name} {verb.example}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "pea-jax VERB --config FILE --workdir DIR [--config.path.to.field=value]",
            "",
            "Teach a frozen text-to-image model another language with a small adapter.",
            "",
            *verbs,
            "",
            *examples,
            "",
            "pea-jax VERB --help tells its flags, configs/base.py every field of a config.",
        ]
    )


def _help(verb: str, arguments: Sequence[str]) -> str:
    values = define(verb)
    names = [name for name in values if len(name) > 1]
    width = max(map(len, names)) + len("  --") + 2
    told = []
    for name in names:
        told += textwrap.wrap(
            values[name].help.split(";\n")[0],
            96,
            initial_indent=f"  --{name}".ljust(width),
            subsequent_indent=" " * width,
        )
    chosen = VERBS[verb]
    lines = [
        f"pea-jax {verb} {chosen.example}",
        "",
        *textwrap.wrap(f"{chosen.summary[0].upper()}{chosen.summary[1:]}. {chosen.note}", 96),
        "",
        *told,
    ]
    if chosen.positional:
        return "\n".join(lines)
    lines += [
        "",
        "Any field of the config can be set: --config.path.to.field=value.",
        "With --config FILE this help lists the fields.",
    ]
    values(["pea-jax", *(word for word in arguments if word not in ("-h", "--help"))], True)
    if values["config"].value:
        config = configs.load(Path(values["config"].value))
        lines[-2:] = ["The fields of the config:", *configs.listed(config)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
