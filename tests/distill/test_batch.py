"""The layout of a batch: where rows lie, what comes out again, which batches are refused."""

import numpy as np
import pytest

from pea_jax.distill.batch import BatchLayout, check_rows, count_rows
from tests.distill import fakes


def test_every_shard_holds_its_native_rows_and_then_its_parallel_rows():
    """Any other order would move rows between devices."""
    layout = BatchLayout({"native": 4, "parallel": 6}, data_shards=2)
    joined = layout.join([np.array([0, 1, 2, 3]), np.array([10, 11, 12, 13, 14, 15])])
    assert joined.tolist() == [0, 1, 10, 11, 12, 2, 3, 13, 14, 15]


@pytest.mark.parametrize("data_shards", [1, 2, 4])
def test_take_gives_back_what_join_took(rng, data_shards):
    layout = BatchLayout({"native": 4, "parallel": 8}, data_shards)
    parts = [
        {"x": rng.standard_normal((4, 3, 2)), "y": np.arange(4)},
        {"x": rng.standard_normal((8, 3, 2)), "y": np.arange(8)},
    ]
    joined = layout.join(parts)
    assert joined["x"].shape == (12, 3, 2)
    for name, part in zip(("native", "parallel"), parts, strict=True):
        taken = layout.take(joined, name)
        np.testing.assert_array_equal(taken["x"], part["x"].astype(np.float32))
        np.testing.assert_array_equal(taken["y"], part["y"])


def test_rows_that_do_not_divide_the_shards_are_named_with_their_numbers():
    check_rows({"native": 8, "parallel": 16}, 8)
    with pytest.raises(ValueError, match="evenly") as error:
        check_rows({"native": 6, "parallel": 12}, 8)
    assert str(error.value) == (
        "batch: every part must split evenly over the 8 data shards of the mesh, but native has 6 "
        "rows and parallel has 12 rows; use multiples of 8"
    )
    with pytest.raises(ValueError, match="but native has 6 rows; use"):
        check_rows({"native": 6, "parallel": 16}, 8)


def count(batch, empty=None, *, hybrid=True, data_shards=1):
    return count_rows(batch, empty or fakes.empty_prompt(), hybrid=hybrid, data_shards=data_shards)


def test_rows_are_counted_in_the_order_of_the_parts():
    batch = fakes.make_batch(2, 4)
    shuffled = {name: batch[name] for name in ("parallel", "native")}
    assert list(count(shuffled).items()) == [("native", 2), ("parallel", 4)]
    assert count(fakes.make_batch(0, 4)) == {"parallel": 4}


def test_everything_that_is_wrong_is_told_at_once():
    batch = fakes.make_batch(2, 4)
    batch["paralel"] = batch["native"]
    del batch["parallel"]["english_ids"]
    batch["native"]["ids"] = batch["native"]["ids"][:1]
    batch["native"]["mask"] = batch["native"]["mask"][:, :-1]
    empty = fakes.empty_prompt()
    del empty["english_mask"]
    with pytest.raises(ValueError, match="batch") as error:
        count(batch, empty)
    message = str(error.value)
    assert "empty prompt: no english_mask" in message
    assert "part 'paralel'" in message
    assert "parallel: expected the fields" in message
    assert "native: expected one positive number of rows" in message
    assert "native: mask has 4 tokens a row, the empty prompt 5" in message


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no part"):
        count({})


def test_native_rows_need_hybrid_training():
    """They have no English caption for the teacher that every row has without it."""
    assert count(fakes.make_batch(0, 4), hybrid=False) == {"parallel": 4}
    with pytest.raises(ValueError, match="native: 2 rows, but without hybrid training"):
        count(fakes.make_batch(2, 4), hybrid=False)
