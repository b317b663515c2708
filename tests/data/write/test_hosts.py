import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pea_jax.data import paths
from pea_jax.data.write import builder
from pea_jax.data.write.hosts import Hosts
from pea_jax.runtime import storage
from tests.data import sets, shards


def test_hosts_share_the_parts_and_the_first_puts_the_set_together(tmp_path):
    """Each part is made by one of them; none goes on before the set is there. What was begun of
    another recipe before them, and came to nothing, is in nobody's way."""
    broken = {"train": shards.splits(fail=0)["train"][2:]}
    with pytest.raises(ValueError, match="is broken"):
        builder.build(tmp_path / "data", "small", broken, recipe={"of": "ink"})
    barriers = {name: threading.Barrier(3, timeout=60) for name in ("parts of small", "small")}
    made, calls = [], {}

    def host(index: int) -> Path:
        def noting(split: str, number: int, shard):
            made.append((split, number, index))
            return shard()

        splits = {
            split: [functools.partial(noting, split, *each) for each in enumerate(some)]
            for split, some in shards.splits().items()
        }
        folder = builder.build(
            tmp_path / "data",
            "small",
            splits,
            recipe={},
            hosts=Hosts(index, 3, lambda name: barriers[name].wait()),
            progress=lambda *each: calls.update({index: each}),
        )
        assert paths.is_built(folder)
        return folder

    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(host, range(3)))
    alone = builder.build(
        tmp_path / "expected",
        "small",
        shards.splits(),
        recipe={},
        progress=lambda *each: calls.update(alone=each),
    )
    assert shards.contents(folders[0]) == shards.contents(alone)
    assert len(set(folders)) == 1
    shares = {split: range(len(some)) for split, some in shards.splits().items()}
    every = [(split, number) for split, some in shares.items() for number in some]
    assert sorted(each[:2] for each in made) == sorted(every)
    assert {each[:2]: each[2] for each in made} == {
        each: number % 3 for number, each in enumerate(every)
    }
    # The first knows in the end what became of all rows, the others of their own.
    assert calls[0] == calls["alone"]
    assert calls[1][:2] == (len(every[1::3]), len(every[1::3]))


def test_hosts_that_share_no_storage_are_reported(tmp_path):
    splits = {"train": [lambda: [sets.row(1)], lambda: [sets.row(2)]]}

    def build(index: int) -> None:
        hosts = Hosts(index, 2, lambda name: None)
        builder.build(tmp_path / str(index), "small", splits, hosts=hosts)

    with pytest.raises(storage.StorageError, match=r"part train-00001 is not in .* all of them"):
        build(0)
    with pytest.raises(storage.StorageError, match=r"1\.0\.0 is not there, .* all of them"):
        build(1)
