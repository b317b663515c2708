"""What a data set is made from, kept beside it, so that one set is never made of two recipes."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pea_jax.runtime import storage
from pea_jax.runtime.storage import AnyPath

#: Of the differences between two recipes, as many are told.
_TOLD = 5
_LETTERS = 60


def as_json(recipe: Mapping[str, Any] | None) -> Any:
    """A recipe as it comes back from its file.

    Raises:
      ValueError: it holds something that JSON can't.
    """
    try:
        return json.loads(json.dumps(recipe, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"recipe: expected what JSON can hold: {error}") from error


def write(file: AnyPath, recipe: Any) -> None:
    """Keep a recipe."""
    storage.replace_text(file, json.dumps(recipe, indent=2, ensure_ascii=False))


def read(file: AnyPath) -> Any:
    """The recipe of a file; None where there is none."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def difference(there: Any, now: Any) -> str:
    """How two recipes differ, in one line; "" if they don't."""
    before, after = dict(_leaves(there)), dict(_leaves(now))
    told = [
        f"{name}: {_told(before, name)} there, {_told(after, name)} now"
        for name in sorted(before.keys() | after.keys())
        if _told(before, name, None) != _told(after, name, None)
    ]
    if len(told) > _TOLD:
        told[_TOLD:] = [f"and {len(told) - _TOLD} more"]
    return "; ".join(told)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that holds no other, with its path such as mapping.caption or inputs.0."""
    if isinstance(value, list | dict) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name or "recipe", value


def _told(leaves: Mapping[str, Any], name: str, letters: int | None = _LETTERS) -> str:
    if name not in leaves:
        return "nothing"
    text = json.dumps(leaves[name], ensure_ascii=False)
    return text if letters is None or len(text) <= letters else f"{text[:letters]}..."
