"""Configs of the command line: Python files that return a ConfigDict, and fields set one by one.

Only the command line and the tasks see a ConfigDict; below them go plain arguments.
"""

import contextlib
import difflib
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from pea_jax.runtime.errors import UsageError


def load(file: Path) -> ConfigDict:
    """The config that `get_config` of a Python file returns, locked.

    The file may import its neighbours as `configs.NAME`, from wherever the command is run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it has no `get_config`, or sets a field that is not there.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no config file {file}")
    spec = importlib.util.spec_from_file_location("pea_jax_config", file)
    if spec is None:
        raise ValueError(f"{file}: expected a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    try:
        with _import_path(file.resolve().parent.parent, Path.cwd()):
            spec.loader.exec_module(module)
            config = module.get_config()
    except (AttributeError, KeyError, TypeError, ImportError, SyntaxError) as error:
        raise ValueError(f"{file}: {error.args[0] if error.args else error}") from error
    if not isinstance(config, ConfigDict):
        raise ValueError(f"{file}: expected a ConfigDict, got a {type(config).__name__}")
    return config.lock()


def from_json(config: Mapping[str, Any]) -> ConfigDict:
    """A config read back from JSON, locked."""
    return ConfigDict(_tuples(dict(config))).lock()


def override(config: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
    """Set fields of `config` from arguments such as --config.optim.learning_rate=1e-4.

    Raises:
        UsageError: an argument that is none, a field that is not there, or a value of another type.
    """
    known = list(fields(config))
    for argument in arguments:
        name = argument.split("=", 1)[0].removeprefix("--")
        path = name.removeprefix("config.")
        if name != path and path not in known:
            close = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UsageError(f"the config has no field {path}{hint}")
    values = flags.FlagValues()
    words = ["pea-jax", *arguments]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=words)
    try:
        rest = values(words)[1:]
    except (ValueError, TypeError, flags.Error) as error:
        raise UsageError(str(error)) from error
    if rest:
        raise UsageError(f"unexpected {' '.join(rest)!r}")
    return values["config"].value


def listed(config: ConfigDict) -> list[str]:
    """Every field with its value, as arguments that would set it."""
    lines = []
    for path in fields(config):
        value: Any = config
        for name in path.split("."):
            value = value[name]
        lines.append(f"  --config.{path}={json.dumps(value, ensure_ascii=False)}")
    return lines


@contextlib.contextmanager
def _import_path(*folders: Path) -> Iterator[None]:
    before = list(sys.path)
    sys.path[:0] = [str(folder) for folder in folders]
    try:
        yield
    finally:
        sys.path[:] = before


def fields(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """The dotted path of every field, groups left out."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _tuples(value: Any) -> Any:
    """JSON has lists where a config has tuples, which are what the command line can set."""
    if isinstance(value, dict):
        return {name: _tuples(part) for name, part in value.items()}
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value
