import pytest

from pea_jax.data.origins import files


def write(folder, *names):
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"1234567"[: len(file.name)])


def found(folder, *where, endings=(".tar",)):
    return [
        (file.path.removeprefix(f"{folder}/"), file.label)
        for file in files.find([f"{folder}/{each}" for each in where], endings)
    ]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{00..02}.tar", ["00.tar", "01.tar", "02.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{008..011}", ["008", "009", "010", "011"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("{,x}y", ["y", "xy"]),
        ("{3..2}", []),
    ],
)
def test_braces_are_expanded_as_a_shell_would(pattern, names):
    if names:
        assert files.expand(pattern) == names
    else:
        with pytest.raises(ValueError, match=r"expected {FIRST..LAST} or {A,B}, got {3..2}"):
            files.expand(pattern)


def test_files_come_in_the_order_asked_for_those_of_a_pattern_sorted(tmp_path):
    write(tmp_path, *(f"b/{n:02d}.tar" for n in range(11)), "a/x.tar", "a/notes.txt", "a/y.tar")
    assert found(tmp_path, "b/{09..10}.tar", "a/*.tar", "b/00.tar") == [
        ("b/09.tar", "b/09"),
        ("b/10.tar", "b/10"),
        ("a/x.tar", "a/x"),
        ("a/y.tar", "a/y"),
        ("b/00.tar", "b/00"),
    ]
    # A folder stands for the files in it, and labels begin below what all have in common.
    assert found(tmp_path, "a") == [("a/x.tar", "x"), ("a/y.tar", "y")]
    assert len(found(tmp_path, "*/*")) == 13
    assert found(tmp_path, "?/x*") == [("a/x.tar", "x")]
    assert [file.size for file in files.find([f"{tmp_path}/a"], [".tar"])] == [5, 5]


def test_labels_do_not_depend_on_where_the_files_lie_nor_fall_together(tmp_path):
    for place in ("one", "other"):
        write(tmp_path / place, "t/00.tar", "t/00.tar.gz", "u/00.tar")
    made = [
        files.find([f"{tmp_path}/{place}/*/*"], (".tar", ".tar.gz")) for place in ("one", "other")
    ]
    assert [file.label for file in made[0]] == ["t/00.tar", "t/00.tar.gz", "u/00.tar"]
    assert repr(made[0]) == repr(made[1])
    assert made[0] != made[1]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (["nowhere/{0..8}.tar"], r"no file \(\*\.tar\) at: .*/nowhere/0.tar, .* and 4 more$"),
        (["a/x.zip"], "no file .*x.zip"),
        (["empty"], "no file .*empty"),
        (["a/*.zip"], r"no file .*\*.zip"),
        (["a/x.tar", "a/*.tar"], "x.tar is named more than once"),
    ],
)
def test_names_that_stand_for_nothing_or_for_the_same_are_reported(tmp_path, where, message):
    write(tmp_path, "a/x.tar", "a/x.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        found(tmp_path, *where)
