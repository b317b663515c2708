import gc
import os
import resource
import time

import numpy as np
import pytest

from pea_jax.data import schema
from pea_jax.data.write import parts
from pea_jax.data.write.parts import BuildPart, PartReport, ShardPart
from pea_jax.runtime import storage
from tests.data import sets, shards


def test_a_part_tells_what_became_of_its_shard(tmp_path):
    part = ShardPart(str(tmp_path), "train-00000")
    assert not part.is_done()
    BuildPart(part, shards.splits()["train"][0])()
    assert part.is_done()
    assert part.keys() == ["a", "b", "c"]
    assert part.report().kept == 3
    assert part.report().rejected == {"is no image": 1, parts.REPEATED_KEY: 1}
    assert part.report().size == (part.folder / parts.RECORDS).stat().st_size
    expected = [schema.index_record(sets.row(n, key=key)) for n, key in ((0, "a"), (1, "b"))]
    assert part.index()[:2].tolist() == expected
    assert part.index().dtype == schema.INDEX_DTYPE


def test_indices_are_read_by_several_threads_and_parsed_by_one(tmp_path):
    """Python 3.11 raises a SystemError where several parse headers and collecting garbage lets
    another go on, which callbacks such as jax's do.
    """
    part = ShardPart(str(tmp_path), "train-00000")
    BuildPart(part, lambda: [sets.row(0)])()
    before = gc.get_threshold()
    gc.callbacks.append(lets_others_go_on := lambda *_: time.sleep(1e-4))
    gc.set_threshold(20)
    try:
        found = [index.tolist() for index in parts.indices([part] * 200)]
    finally:
        gc.callbacks.remove(lets_others_go_on)
        gc.set_threshold(*before)
    assert found == [[schema.index_record(sets.row(0))]] * 200


def test_a_part_that_is_there_is_not_made_again(tmp_path):
    part = ShardPart(str(tmp_path), "train-00000")
    BuildPart(part, lambda: [sets.row(1)])()
    BuildPart(part, lambda: [sets.row(2)])()
    assert part.keys() == ["row1"]


def test_of_two_that_make_a_part_at_once_the_first_counts(tmp_path):
    part = ShardPart(str(tmp_path), "train-00000")

    def overtaken():
        yield sets.row(1)
        BuildPart(part, lambda: [sets.row(2)])()

    BuildPart(part, overtaken)()
    assert part.keys() == ["row2"]
    assert os.listdir(tmp_path) == ["train-00000"]


def test_keys_of_any_letters_come_back(tmp_path):
    keys = ["a b\n", "路/1\u2028", '"', "é\x85\x00"]
    part = ShardPart(str(tmp_path), "train-00000")
    BuildPart(part, lambda: [sets.row(number, key=key) for number, key in enumerate(keys)])()
    assert part.keys() == keys


def test_a_report_keeps_few_keys_and_exact_counts():
    report, more = PartReport(kept=2), PartReport(kept=3)
    for number in range(1000):
        report.reject("small", f"row{number}")
        more.reject("large" if number else "small", f"more{number}")
    report.add(more)
    assert report.kept == 5
    assert report.rejected == {"small": 1001, "large": 999}
    assert report.examples == {
        "small": [f"row{number}" for number in range(5)],
        "large": [f"more{number}" for number in range(1, 6)],
    }


def test_rows_are_written_as_they_come(tmp_path):
    noise, sizes = np.random.default_rng(0).bytes(1_000_000), []

    def rows():
        for number in range(40):
            yield sets.row(number, image=number.to_bytes(1, "big") + noise)
            sizes.append(sum(file.stat().st_size for file in tmp_path.rglob("*.array_record")))

    BuildPart(ShardPart(str(tmp_path), "train-00000"), rows)()
    assert sizes[-1] > 20_000_000, "no shard is held in memory"


def test_a_disk_that_is_full_is_reported_in_a_line_and_leaves_no_part(tmp_path):
    noise = np.random.default_rng(0).bytes(100_000)
    rows = [sets.row(number, image=noise) for number in range(50)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(storage.StorageError, match="File too large") as error:
            BuildPart(ShardPart(str(tmp_path), "train-00000"), lambda: rows)()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_what_others_hide_beside_the_parts_is_left(tmp_path):
    for name in (".nfs01", ".a.b.c.d", ".pea_jax", "train-00000"):
        (tmp_path / name).mkdir()
    parts.remove_orphans(tmp_path)
    assert len(os.listdir(tmp_path)) == 4
    parts.remove_orphans(tmp_path / "none")
