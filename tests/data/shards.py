"""Shards for other processes, which keep a diary and may fail on purpose."""

import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pea_jax.data.schema import Rejected, Row
from pea_jax.data.write.parts import Shard
from tests.data import sets

#: Keys of the rows of each shard: twice in one, twice in two, a whole shard again, one with none.
KEYS = (
    ("a", "b", "a", "c"),
    ("d", "b", "e"),
    ("f", "g", "h"),
    ("g", "f"),
    (),
    ("i", "a", "j", "c"),
)
#: Those that are kept, in order, and how many shards are left.
KEPT = tuple("abcdefghij")
FILES = 4


def splits(diary: Path | None = None, **wrong: int) -> dict[str, list[Shard]]:
    """A set of KEYS and a small second split; keywords are those of `rows` and of shard 2."""
    train = [
        functools.partial(rows, number, diary, **(wrong if number == 2 else {}))
        for number in range(len(KEYS))
    ]
    return {"train": train, "test": [functools.partial(rows, 2, None)]}


def rows(
    number: int, diary: Path | None, fail: int = -1, die: int = -1, wait: int = -1
) -> Iterator[Row | Rejected]:
    """The rows of a shard. It raises before row `fail`, kills its process before row `die`, and
    waits for a minute before row `wait`.
    """
    write(diary, f"begin {number} {os.getpid()}")
    yield Rejected(f"rejected{number}", "is no image")
    for place, key in enumerate(KEYS[number]):
        if place == fail:
            raise ValueError(f"shard {number} is broken")
        if place == die:
            os.kill(os.getpid(), 9)
        if place == wait:
            write(diary, f"wait {number} {os.getpid()}")
            time.sleep(60)
        yield sets.row(10 * number + place, key=key)
    write(diary, f"end {number} {os.getpid()}")


def write(diary: Path | None, line: str) -> None:
    if diary is not None:
        with diary.open("a") as file:
            file.write(line + "\n")


def read(diary: Path, what: str) -> list[int]:
    """The shards of the diary's lines of one kind, in order."""
    lines = [line.split() for line in diary.read_text().splitlines()] if diary.exists() else []
    return [int(number) for word, number, _ in lines if word == what]


def workers(diary: Path) -> set[int]:
    """The processes in the diary."""
    return {int(line.split()[2]) for line in diary.read_text().splitlines()}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }
