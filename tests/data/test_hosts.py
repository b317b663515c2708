import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pea_jax.data import builder, layout
from pea_jax.data.hosts import Hosts
from pea_jax.data.parts import Job, Making, Part
from tests.data import sets, shards


def test_hosts_share_the_parts_and_the_first_puts_the_set_together(tmp_path):
    """Each part is made by one of them; none goes on before the set is there."""
    barriers = {
        name: threading.Barrier(3, timeout=60) for name in ("parts of a data set", "a data set")
    }
    made = []

    def host(index: int) -> Path:
        def run(jobs):
            yield from hosts([_noting(job, index, made) for job in jobs])

        hosts = Hosts(index, 3, lambda name: barriers[name].wait())
        folder = builder.build(tmp_path / "data", "small", shards.splits(), recipe={}, run=run)
        hosts.end()
        assert layout.is_built(folder)
        return folder

    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(host, range(3)))
    alone = builder.build(tmp_path / "expected", "small", shards.splits(), recipe={})
    assert shards.contents(folders[0]) == shards.contents(alone)
    assert len(set(folders)) == 1
    names = [name for name, _ in made]
    assert len(set(names)) == len(names)
    assert all(int(name.rpartition("-")[2]) % 3 == index for name, index in made)
    assert len({index for _, index in made}) == 3


def _noting(job: Job, index: int, made: list) -> Job:
    if not isinstance(job, Making):
        return job

    def shard():
        made.append((job.part.name, index))
        return job.shard()

    return dataclasses.replace(job, shard=shard)


def test_hosts_that_share_no_storage_are_told(tmp_path):
    (tmp_path / "parts").mkdir()
    parts = [Part(str(tmp_path / "parts"), f"train-{number:05d}") for number in range(2)]
    jobs = [Making(part, lambda: [sets.row(1)]) for part in parts]
    hosts = Hosts(0, 2, lambda name: None)
    with pytest.raises(ValueError, match=r"part train-00001 is not in .*hosts make a set together"):
        list(hosts(jobs))
