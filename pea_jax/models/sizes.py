"""Checks of the numbers that the configs of networks have in common."""

from collections.abc import Iterable, Mapping
from typing import Any


def not_counts(values: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """One line for every one of `names` that is in `values` and is no positive integer."""
    return [
        f"{name}: expected a positive integer, got {values[name]!r}"
        for name in names
        if name in values and (type(values[name]) is not int or values[name] < 1)
    ]
