"""The commands of `pea-jax` and their options. No task is imported here, and no jax."""

import argparse
import dataclasses
import difflib
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from pea_jax import __version__
from pea_jax.runtime.errors import UsageError

#: The arguments of `argparse.ArgumentParser.add_argument`, by the name of an option.
Options = Mapping[str, Mapping[str, Any]]


def _value(metavar: str, description: str, **others: Any) -> Mapping[str, Any]:
    return {"metavar": metavar, "help": description, **others}


def _number(description: str) -> Mapping[str, Any]:
    return _value("N", description, type=int)


def _switch(description: str) -> Mapping[str, Any]:
    return {"action": "store_true", "help": description}


_STEP = {"--step": _number("checkpoint step; default: the latest")}
_RUN = {
    "--config": _value("NAME", "a shipped config (tiny_zh) or a Python file (path/to/mine.py)"),
    "--workdir": _value("DIR", "folder of the run"),
    "--distributed": {
        "action": argparse.BooleanOptionalAction,
        "help": "join the processes of other hosts (TPU pods, Slurm, Open MPI, Kubernetes); "
        "default: where the environment shows several",
    },
}

_FIELDS = """Any field of the config can be set: --config.path.to.field=value.
With --config NAME this help lists the fields."""


@dataclasses.dataclass(frozen=True)
class Command:
    """A task as the command line offers it.

    Attributes:
        summary: one line.
        example: the arguments of a typical call.
        options: passed to the task as keyword arguments of the same names. A command with a FILE
            takes it in place of a config and a workdir.
        required: names of options without a default.
        note: special cases of --config and --workdir.
    """

    summary: str
    example: str
    options: Options
    required: tuple[str, ...] = ("workdir",)
    note: str = "Without --config: the config of the run in --workdir."

    @property
    def takes_config(self) -> bool:
        """Whether the task takes a config and a workdir."""
        return "file" not in self.options

    @property
    def names(self) -> list[str]:
        """The task's keyword arguments."""
        return [option.lstrip("-").replace("-", "_") for option in self.options]


COMMANDS = {
    "prepare": Command(
        "make the data set of a config; continues where it was stopped",
        "--config prepare_laion_wukong --workers 16",
        {
            "--workers": _number("number of processes on this machine; default: 1"),
            "--beam_pipeline_options": _value("NAME=VALUE,...", "run as an Apache Beam pipeline"),
            "--latents": _switch("also encode the pictures with the VAE, for data.latents"),
            "--benchmark": _switch("then read the data as training does and print images/s"),
        },
        required=("config",),
        note="No --workdir is needed.",
    ),
    "train": Command(
        "distil an adapter; continues where the run was stopped",
        "--config tiny_zh --workdir runs/x --config.optim.learning_rate=1e-3",
        {"--profile": _value("START:COUNT", "trace COUNT steps after the first START, for xprof")},
    ),
    "sample": Command(
        "generate images from prompts with a trained adapter",
        "--workdir runs/x --prompt 一个红色的大圆形 --output images/",
        {
            "--prompts": _value("FILE", "text file with one prompt per line"),
            "--prompt": _value("TEXT", "a prompt; can be repeated", action="append", default=[]),
            "--output": _value("DIR", "new folder for the images"),
            **_STEP,
        },
        required=("output",),
        note="Without --config: the config of the run in --workdir.\n"
        "Without --workdir: the base model is sampled, in English.",
    ),
    "evaluate": Command(
        "score teacher, untrained and trained adapter, and the translation baseline",
        "--workdir runs/x",
        {
            "--output": _value("DIR", "folder of eval.json and grid.png; default: WORKDIR"),
            **_STEP,
        },
    ),
    "export": Command(
        "write the adapter, and a model folder for PyTorch diffusers",
        "--workdir runs/x --output exported/",
        {"--output": _value("DIR", "new folder; default: WORKDIR/export"), **_STEP},
    ),
    "preflight": Command(
        "compile a run for devices that need not be present: memory, compute, traffic",
        "--config sdxl_zh --topology v5e:4x4",
        {
            "--topology": _value("SLICE", "a TPU slice such as v5e:4x4, or local"),
            "--task": _value("TASK", "train or sample; default: train"),
            "--size": _value("SIZE", "HxW in pixels, separated by commas; or buckets, or largest"),
            "--batch": _number("rows per chip; default: by the batch size of the config"),
            "--tune": _switch("search for the fastest batch and remat"),
            "--json": _switch("print one JSON object"),
        },
        required=("config", "topology"),
        note="No --workdir, weights or data are needed, and no TPU for a TPU slice.",
    ),
    "convert": Command(
        "convert an adapter file between the authors' format and ours",
        "pytorch_model.bin --output adapter/",
        {
            "file": _value("FILE", "torch pickle, safetensors file or exported folder", nargs="?"),
            "--output": _value("DIR", "new folder"),
            "--format": _value("FORMAT", "safetensors (ours) or torch; default: safetensors"),
            "--dtype": _value("DTYPE", "float32, float16 or bfloat16; default: unchanged"),
            "--language-encoder": _value("NAME", "language encoder, for config.json"),
            "--base": _value("NAME", "base model, for config.json"),
        },
        required=("file", "output"),
        note="The values stay the same bit for bit, unless --dtype is set.",
    ),
}


_FORMATTER = functools.partial(
    argparse.RawDescriptionHelpFormatter, max_help_position=32, width=100
)


class _Parser(argparse.ArgumentParser):
    """Raises `UsageError` in place of an exit."""

    def __init__(self, **settings: Any):
        super().__init__(
            add_help=False,
            allow_abbrev=False,
            formatter_class=_FORMATTER,
            **settings,
        )
        self.set_defaults(parser=self)
        self.add_argument("-h", "--help", action="store_true", help="show this help")

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands. A parsed namespace has the parser of its command as `parser`."""
    examples = [f"  pea-jax {name} {command.example}" for name, command in COMMANDS.items()]
    root = _Parser(
        prog="pea-jax",
        usage="%(prog)s COMMAND --config NAME --workdir DIR [--config.path.to.field=value]",
        description="Teach a frozen text-to-image model another language with a small adapter.",
        epilog="\n".join(["examples:", *examples]),
    )
    root.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parsers = root.add_subparsers(
        dest="command", title="commands", metavar="COMMAND ...", prog=root.prog
    )
    for name, command in COMMANDS.items():
        parser = parsers.add_parser(
            name,
            help=command.summary,
            usage=f"%(prog)s {command.example}",
            description=f"{command.summary[0].upper()}{command.summary[1:]}.\n{command.note}",
            epilog=_FIELDS if command.takes_config else "",
        )
        for option, settings in (command.options | (_RUN if command.takes_config else {})).items():
            parser.add_argument(option, **settings)
        parser.add_argument("--debug", **_switch("show the traceback of an error"))
        parser.add_argument("-v", "--verbose", **_switch("show the logs of libraries"))
    return root


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments of a command line without the program's name.

    Returns:
        The namespace, and what is left: the overrides of the config.

    Raises:
        UsageError: an unknown command or flag, or a value of another type.
    """
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        raise UsageError(f"no command {argv[0]!r}; expected one of {', '.join(COMMANDS)}")
    arguments, rest = make_parser().parse_known_args(argv)
    known = arguments.parser._option_string_actions
    for name in (word.split("=", 1)[0] for word in rest):
        if name.startswith("--") and not name.startswith("--config."):
            raise UsageError(f"no flag {name}{did_you_mean(name, known)}")
    return arguments, rest


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names as the end of a message; "" where none is near."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
