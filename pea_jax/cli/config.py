"""Configs of the command line: Python files that return a ConfigDict, and overrides of fields.

Only the command line and the tasks see a ConfigDict; the layers below take plain arguments.
"""

import contextlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from pea_jax.cli.commands import did_you_mean
from pea_jax.runtime import storage
from pea_jax.runtime.config_fields import as_tuples
from pea_jax.runtime.errors import UsageError


def shipped() -> dict[str, Path]:
    """The files of pea_jax.configs by name."""
    (folder,) = importlib.util.find_spec("pea_jax.configs").submodule_search_locations
    return {file.stem: file for file in sorted(Path(folder).glob("*.py"))}


def load(name: str | Path) -> ConfigDict:
    """The locked config that `get_config` of a Python file returns.

    Args:
        name: a shipped config (tiny_zh), or a Python file (path/to/mine.py). A file can import its
            neighbours by their names, and shipped configs from pea_jax.configs.

    Raises:
        UsageError: no shipped config has this name.
        FileNotFoundError: no such file.
        ValueError: it has no `get_config`, or sets a field that does not exist.
    """
    file = _find(str(name))
    spec = importlib.util.spec_from_file_location("pea_jax_config", file)
    if spec is None:
        raise ValueError(f"{file}: expected a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    try:
        with _import_path(file.resolve().parent):
            spec.loader.exec_module(module)
            config = module.get_config()
    except (AttributeError, KeyError, TypeError, ImportError, SyntaxError) as error:
        raise ValueError(f"{file}: {error.args[0] if error.args else error}") from error
    if not isinstance(config, ConfigDict):
        raise ValueError(f"{file}: expected a ConfigDict, got a {type(config).__name__}")
    return config.lock()


def _find(name: str) -> Path:
    files = shipped()
    if name in files:
        return files[name]
    names = ", ".join(files)
    if Path(name).name == name and not name.endswith(".py"):
        raise UsageError(f"no config {name!r}; expected a Python file (.py) or one of {names}")
    file = storage.local(name, "--config")
    if not file.is_file():
        raise FileNotFoundError(f"no config file {file}; shipped configs, by name: {names}")
    return file


def from_json(stored: Mapping[str, Any]) -> ConfigDict:
    """A config read back from JSON, locked. Fields that it lacks have the defaults of base.py.

    Raises:
        ValueError: names every field that no longer exists, since it may have changed numbers; or a
            value has another type.
    """
    config, made = load("base"), ConfigDict(as_tuples(dict(stored)))
    if unknown := sorted(fields(made).keys() - fields(config).keys()):
        raise ValueError(
            f"config.json has fields that this version of pea-jax does not know: "
            f"{', '.join(unknown)}; remove them from the file if the run does not depend on them"
        )
    try:
        config.update(made)
    except TypeError as error:
        raise ValueError(f"config.json: {error}") from error
    return config


def override(config: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
    """Set fields of `config` from arguments such as --config.optim.learning_rate=1e-4.

    Raises:
        UsageError: another argument, an unknown field, or a value of another type.
    """
    known = fields(config)
    for argument in arguments:
        name = argument.split("=", 1)[0].removeprefix("--")
        path = name.removeprefix("config.")
        if name != path and path not in known:
            raise UsageError(f"the config has no field {path}{did_you_mean(path, known)}")
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
    """Every field with its value, as the argument that sets it."""
    values = fields(config).items()
    return [f"  --config.{path}={json.dumps(value, ensure_ascii=False)}" for path, value in values]


@contextlib.contextmanager
def _import_path(folder: Path) -> Iterator[None]:
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


def fields(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """The value of every field by its dotted path, without the groups."""
    found = {}
    for name, value in config.items():
        is_group = isinstance(value, ConfigDict)
        found |= fields(value, f"{prefix}{name}.") if is_group else {prefix + name: value}
    return found
