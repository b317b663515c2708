import numpy as np

from pea_jax.data import schema
from pea_jax.data.write import deduplicate, parts
from pea_jax.data.write.parts import BuildPart, ShardPart
from tests.data import sets


def made(folder, *shards: str) -> list[ShardPart]:
    """A part for each word, with a row for each letter."""
    result = []
    for number, letters in enumerate(shards):
        rows = [sets.row(place, key=letter) for place, letter in enumerate(letters)]
        result.append(ShardPart(str(folder), f"train-{number:05d}"))
        BuildPart(result[-1], lambda rows=rows: rows)()
    return result


def found(some: list[ShardPart]) -> dict[int, list[int]]:
    drop = deduplicate.repeated_rows(some, [part.report().kept for part in some])
    return {number: places.tolist() for number, places in drop.items()}


def test_later_rows_with_a_key_are_found(tmp_path):
    assert found(made(tmp_path, "abc", "", "dbe", "f", "bac", "f")) == {
        2: [1],
        4: [0, 1, 2],
        5: [0],
    }


def test_no_repetition_reads_no_keys(tmp_path, monkeypatch):
    some = made(tmp_path, "abc", "", "de")
    monkeypatch.setattr(ShardPart, "keys", lambda part: 1 / 0)
    assert found(some) == {}
    assert found(some[1:2]) == {}


def test_rows_whose_hashes_alone_are_the_same_are_kept(tmp_path, monkeypatch):
    real = schema.index_record
    monkeypatch.setattr(schema, "index_record", lambda row: (7, *real(row)[1:]))
    assert found(made(tmp_path, "abc", "dbe", "fgc")) == {1: [1], 2: [2]}


def test_random_sets_against_a_count_of_all_keys(tmp_path, rng):
    for turn in range(5):
        letters = [chr(97 + number) for number in range(26)]
        words = ["".join(rng.permutation(letters)[: rng.integers(9)]) for _ in range(8)]
        (tmp_path / str(turn)).mkdir()
        seen, expected = set(), {}
        for number, word in enumerate(words):
            if places := [place for place, letter in enumerate(word) if letter in seen]:
                expected[number] = places
            seen |= set(word)
        assert found(made(tmp_path / str(turn), *words)) == expected


def test_a_deduplicated_part_holds_the_rest(tmp_path):
    (source,) = made(tmp_path, "abcd")
    job = deduplicate.DeduplicatePart.plan(source, np.array([0, 2]))
    job()
    copy = job.part
    assert copy.keys() == ["b", "d"]
    assert copy.index().tolist() == source.index()[[1, 3]].tolist()
    assert copy.report().kept == 2
    assert copy.report().rejected == {parts.REPEATED_KEY: 2}
    assert copy.report().examples == {parts.REPEATED_KEY: ["a", "c"]}
    assert source.keys() == list("abcd"), "the other stays"
    # What it holds is what a shard of these rows alone would have made.
    rows = [sets.row(1, key="b"), sets.row(3, key="d")]
    alone = ShardPart(str(tmp_path), "alone")
    BuildPart(alone, lambda: rows)()
    for name in (parts.RECORDS, parts.INDEX, parts.KEYS):
        assert (copy.folder / name).read_bytes() == (alone.folder / name).read_bytes()
