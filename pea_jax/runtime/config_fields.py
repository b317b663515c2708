"""Configs that are read from JSON: frozen dataclasses whose fields declare the values they allow.

    @dataclasses.dataclass(frozen=True)
    class NetworkConfig(Config, label="network config", only={"activation": one_of("silu")}):
        layers: int = field(COUNT, 2)

This is in `runtime` because `models` and `diffusion` both use it and do not import each other.
"""

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

_ConfigT = TypeVar("_ConfigT", bound="Config")

#: Returns None for an allowed value, and otherwise a description of the expected one.
Rule = Callable[[Any], str | None]


def require(expected: str, allows: Callable[[Any], bool]) -> Rule:
    """The rule that holds where `allows` returns True; `expected` describes such values."""
    return lambda value: None if allows(value) else expected


def one_of(*options: Any) -> Rule:
    """A value that equals one of the options and has its type."""
    pairs = [(type(option), option) for option in options]
    return require(" or ".join(map(repr, options)), lambda value: (type(value), value) in pairs)


def optional(rule: Rule) -> Rule:
    """None, or a value that `rule` allows."""
    return lambda value: None if value is None else rule(value)


def per_level(rule: Rule) -> Rule:
    """A list with at least one entry, each allowed by `rule`."""

    def check(value: Any) -> str | None:
        if not isinstance(value, tuple) or not value:
            return "a list"
        expected = next(filter(None, map(rule, value)), None)
        return expected and f"for each level {expected}"

    return check


COUNT = require("a positive integer", lambda value: type(value) is int and value > 0)
FLAG = one_of(False, True)
NUMBER = require("a number", lambda value: type(value) in (int, float))
TOKEN_ID = require("one id", lambda value: type(value) is int)


def field(
    rule: Rule,
    default: Any = dataclasses.MISSING,
    *,
    key: str | None = None,
    multiple_of: str | None = None,
) -> Any:
    """A dataclass field with a rule.

    Args:
        rule: is applied after lists, nested ones too, have become tuples.
        default: for a file without the field; without a default the file must have it.
        key: the name in the file, where it differs from the field's.
        multiple_of: another field, which must divide the value, or every entry of it.
    """
    metadata = {"rule": rule, "key": key, "multiple_of": multiple_of}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Config:
    """Base class of the configs. The constructor and `from_dict` check every field.

    Args of a subclass:
        label: the first words of every error message.
        only: rules for keys of the file that are not fields but must have certain values.
        ignored: fnmatch patterns of further keys that are allowed and have no effect here.

    Raises:
        ValueError: names every field that breaks its rule; where none does, lists the `misfits`.
    """

    label: ClassVar[str]
    only: ClassVar[Mapping[str, Rule]]
    ignored: ClassVar[Sequence[str]]

    def __init_subclass__(
        cls, *, label: str, only: Mapping[str, Rule] | None = None, ignored: Sequence[str] = ()
    ):
        super().__init_subclass__()
        cls.label, cls.only, cls.ignored = label, only or {}, ignored

    @classmethod
    def from_dict(cls: type[_ConfigT], values: Mapping[str, Any], **only: Rule) -> _ConfigT:
        """The config of a parsed JSON file.

        Args:
            values: the content of the file.
            only: more rules for keys that are not fields.

        Raises:
            ValueError: names every unsupported value, missing field and unknown key.
        """
        fields, only = cls.fields(), {**cls.only, **only}
        problems = _broken(only, values) + _broken(_rules(fields), values)
        for key, info in fields.items():
            if info.default is dataclasses.MISSING and key not in values:
                problems.append(f"{key}: missing")
        patterns = *fields, *only, *cls.ignored
        for key, value in values.items():
            if not any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns):
                problems.append(f"{key}: not a known field, got {value!r}")
        cls._raise(problems)
        found = {info.name: values[key] for key, info in fields.items() if key in values}
        return cls(**{name: as_tuples(value) for name, value in found.items()})

    def __post_init__(self):
        fields = self.fields()
        values = {key: getattr(self, info.name) for key, info in fields.items()}
        self._raise(_broken(_rules(fields), values) or self.misfits())

    def misfits(self) -> list[str]:
        """Messages about fields that contradict each other; each alone is already checked."""
        problems = []
        for key, info in self.fields().items():
            if (name := info.metadata.get("multiple_of")) is None:
                continue
            value, divisor = getattr(self, info.name), getattr(self, name)
            entries = value if isinstance(value, tuple) else (value,)
            if any(entry % divisor for entry in entries):
                expected = "multiples" if isinstance(value, tuple) else "a multiple"
                got = list(value) if isinstance(value, tuple) else value
                problems.append(f"{key}: expected {expected} of {name} ({divisor}), got {got}")
        return problems

    @classmethod
    def fields(cls) -> dict[str, dataclasses.Field]:
        """The fields by their names in the file."""
        return {info.metadata.get("key") or info.name: info for info in dataclasses.fields(cls)}

    @classmethod
    def _raise(cls, problems: list[str]) -> None:
        if problems:
            raise ValueError(f"{cls.label}: {'; '.join(problems)}")


def _rules(fields: Mapping[str, dataclasses.Field]) -> dict[str, Rule]:
    return {key: info.metadata["rule"] for key, info in fields.items() if "rule" in info.metadata}


def _broken(rules: Mapping[str, Rule], values: Mapping[str, Any]) -> list[str]:
    """One message for each value that breaks its rule."""
    return [
        f"{key}: expected {expected}, got {values[key]!r}"
        for key, rule in rules.items()
        if key in values and (expected := rule(as_tuples(values[key])))
    ]


def as_tuples(value: Any) -> Any:
    """A value of JSON with tuples in place of lists, at every depth."""
    if isinstance(value, dict):
        return {key: as_tuples(part) for key, part in value.items()}
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value
