"""Configs that declare a rule for each field. The configs of networks are tested with them."""

import dataclasses

import pytest

from pea_jax.runtime.config_fields import COUNT, Config, field, one_of, optional, per_level


@dataclasses.dataclass(frozen=True)
class Example(Config, label="example", only={"kind": one_of("a", None)}, ignored=("_*",)):
    layers: int = field(COUNT)
    widths: tuple[int, ...] = field(per_level(COUNT), (4, 8), multiple_of="groups")
    groups: int = field(COUNT, 4, key="num_groups")
    extra: int | None = field(optional(COUNT), None)
    note: str = "any"


def test_reads_fields_by_their_names_in_the_file():
    read = Example.from_dict({"layers": 2, "widths": [6], "num_groups": 3, "kind": "a", "_by": 1})
    assert read == Example(layers=2, widths=(6,), groups=3)


def test_one_error_names_every_problem():
    """A user would otherwise find them one by one."""
    values = {"widths": [4, 0], "num_groups": True, "kind": "b", "extra": "1", "invented": 0}
    with pytest.raises(ValueError, match=r"^example: ") as error:
        Example.from_dict(values)
    assert str(error.value) == (
        "example: kind: expected 'a' or None, got 'b'; "
        "widths: expected for each level a positive integer, got [4, 0]; "
        "num_groups: expected a positive integer, got True; "
        "extra: expected a positive integer, got '1'; "
        "layers: missing; "
        "invented: not a known field, got 0"
    )


def test_the_constructor_checks_too():
    with pytest.raises(ValueError, match="example: layers: expected a positive integer, got 0"):
        Example(layers=0)
    with pytest.raises(ValueError, match=r"widths: expected multiples of groups \(3\), got \[4, 8"):
        Example(layers=1, groups=3)


def test_options_have_a_type():
    """True equals 1 in Python, and is not a padding of 1."""
    assert one_of(0, 1)(True) == "0 or 1"
    assert one_of(0, 1)(1) is None
