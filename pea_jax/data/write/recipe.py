"""The recipe of a data set: a JSON file beside it that prevents mixing two recipes in one set."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pea_jax.runtime import storage
from pea_jax.runtime.storage import AnyPath

#: Limits of a message: number of differences, and characters of a value.
_MAX_DIFFERENCES, _MAX_CHARACTERS = 5, 60


def as_json(recipe: Mapping[str, Any] | None) -> Any:
    """A recipe as it will be read back from its file.

    Raises:
      ValueError: JSON cannot hold it.
    """
    try:
        return json.loads(json.dumps(recipe, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"recipe: expected what JSON can hold: {error}") from error


def write(file: AnyPath, recipe: Any) -> None:
    """Store a recipe."""
    storage.replace_text(file, json.dumps(recipe, indent=2, ensure_ascii=False))


def read(file: AnyPath) -> Any:
    """The recipe in a file; None if there is no file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def difference(there: Any, now: Any) -> str:
    """The differences of two recipes in one line; "" if they are equal."""
    before, after = dict(_leaves(there)), dict(_leaves(now))
    lines = [
        f"{name}: {_short(before.get(name, 'nothing'))} there, "
        f"{_short(after.get(name, 'nothing'))} now"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    if len(lines) > _MAX_DIFFERENCES:
        lines[_MAX_DIFFERENCES:] = [f"and {len(lines) - _MAX_DIFFERENCES} more"]
    return "; ".join(lines)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Path, such as mapping.caption or inputs.0, and JSON text of every leaf value."""
    if isinstance(value, list | dict) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name or "recipe", json.dumps(value, ensure_ascii=False)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."
