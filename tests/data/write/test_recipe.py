import pytest

from pea_jax.data.write import recipe


@pytest.mark.parametrize(
    ("there", "now", "expected"),
    [
        ({"a": 1, "b": [1, {"c": None}]}, {"b": [1, {"c": None}], "a": 1}, ""),
        (None, None, ""),
        (None, {"a": 1}, "a: nothing there, 1 now; recipe: null there, nothing now"),
        ({"a": {"b": "x"}}, {"a": {"b": "y"}}, 'a.b: "x" there, "y" now'),
        ({"a": ["x", "y"]}, {"a": ["x"]}, 'a.1: "y" there, nothing now'),
        ({"a": []}, {"a": {}}, "a: [] there, {} now"),
        ({"a": 1}, {"a": True}, "a: 1 there, true now"),
        ({"a": 1}, {"a": "1"}, 'a: 1 there, "1" now'),
    ],
)
def test_differences_are_reported_by_their_paths(there, now, expected):
    assert recipe.difference(there, now) == expected


def test_a_difference_after_a_long_beginning_is_seen_and_the_line_stays_short():
    there, now = {"a": 100 * "x" + "y"}, {"a": 100 * "x" + "z"}
    line = recipe.difference(there, now)
    assert line
    assert len(line) < 200
    many = recipe.difference({}, {f"f{number}": number for number in range(9)})
    assert many.endswith("; and 5 more")
    assert len(many.split("; ")) == 6


def test_a_recipe_comes_back_from_its_file(tmp_path):
    made = recipe.as_json({"语": ("a", 1.5), "b": {"c": None}})
    assert recipe.read(tmp_path / "recipe.json") is None
    recipe.write(tmp_path / "recipe.json", made)
    assert recipe.read(tmp_path / "recipe.json") == made == {"语": ["a", 1.5], "b": {"c": None}}


@pytest.mark.parametrize("value", [float("nan"), b"x", max, {1}])
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises(ValueError, match="recipe: expected what JSON can hold"):
        recipe.as_json({"a": value})
