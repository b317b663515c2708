"""The mesh of eight virtual devices, and what lies where on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from pea_jax.runtime import parallel
from tests.distill.collectives import collectives


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (8, 1)),
        ({"fsdp": 2}, (4, 2)),
        ({"data": 2, "fsdp": -1}, (2, 4)),
        ({"data": 1, "fsdp": 8}, (1, 8)),
    ],
)
def test_mesh(sizes, shape):
    mesh = parallel.make_mesh(**sizes)
    assert mesh.axis_names == ("data", "fsdp")
    assert mesh.devices.shape == shape
    assert mesh.axis_types == (AxisType.Auto,) * 2
    assert parallel.data_shards(mesh) == 8


def test_mesh_of_some_devices():
    devices = jax.devices()[2:5]
    mesh = parallel.make_mesh(devices=devices)
    assert set(mesh.devices.flat) == set(devices)
    assert parallel.data_shards(mesh) == 3


def test_a_slice_whose_processes_were_not_joined_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ValueError, match=r"one of 4 processes: give --distributed"):
        parallel.make_mesh()


@pytest.mark.parametrize("sizes", [(3, 1), (-1, 3), (-1, -1), (0, -1), (4, 4), (-1, 0), (-2, -4)])
def test_sizes_that_do_not_make_eight_are_refused(sizes):
    with pytest.raises(ValueError, match=f"= 8 devices .*data={sizes[0]}, fsdp={sizes[1]}"):
        parallel.make_mesh(*sizes)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((8, 16), (None, "fsdp")),  # the largest
        ((16, 8), ("fsdp",)),
        ((16, 16), (None, "fsdp")),  # the last of equals
        ((18, 16), (None, "fsdp")),  # the largest that divides
        ((3, 3, 8, 12), (None, None, None, "fsdp")),
        ((9, 15), ()),  # none divides
        ((4, 4), ()),  # too small to be worth it
        ((), ()),
    ],
)
def test_parameters_are_split_along_the_largest_divisible_axis(shape, spec):
    rule = parallel.parameter_sharding(parallel.make_mesh(data=2, fsdp=4), min_size=64)
    assert rule("some.weight", shape).spec == PartitionSpec(*spec)


def test_small_parameters_are_replicated_by_default():
    rule = parallel.parameter_sharding(parallel.make_mesh(data=2, fsdp=4))
    assert rule("x", (256, 256)).spec == PartitionSpec(None, "fsdp")
    assert rule("x", (256, 252)).spec == PartitionSpec()


def test_parameters_are_whole_without_fsdp():
    rule = parallel.parameter_sharding(parallel.make_mesh(), min_size=1)
    assert rule("x", (1024, 1024)).is_fully_replicated


@pytest.mark.parametrize("fsdp", [1, 2, 8])
def test_a_batch_is_split_over_all_devices(fsdp):
    """Both axes split it: a frozen parameter's part is no reason to compute a row twice."""
    mesh = parallel.make_mesh(fsdp=fsdp)
    array = jax.device_put(np.arange(16 * 3).reshape(16, 3), parallel.batch_sharding(mesh))
    starts = sorted(shard.index[0].start or 0 for shard in array.addressable_shards)
    assert starts == list(range(0, 16, 2))
    assert {shard.data.shape for shard in array.addressable_shards} == {(2, 3)}


def test_to_global():
    mesh = parallel.make_mesh(data=4, fsdp=2)
    batch = {
        "pixels": np.arange(8 * 2).reshape(8, 2).astype(np.uint8),
        "parts": [np.arange(16, dtype=np.int32)],
    }
    arrays = parallel.to_global(batch, mesh)
    assert jax.tree.structure(arrays) == jax.tree.structure(batch)
    for got, want in zip(jax.tree.leaves(arrays), jax.tree.leaves(batch), strict=True):
        assert got.sharding == parallel.batch_sharding(mesh)
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


def test_rows_that_do_not_divide_are_named():
    batch = {"ids": np.zeros((12, 3)), "mask": np.zeros((16, 3)), "scale": np.float32(1)}
    with pytest.raises(ValueError, match=r"8 local devices.*\['ids'\].*\(12, 3\)") as raised:
        parallel.to_global(batch, parallel.make_mesh())
    assert "scale" in str(raised.value)
    assert "mask" not in str(raised.value)


def test_a_split_parameter_computes_as_a_whole_one():
    """What FSDP is for: x @ w with w in four parts on two rows of devices."""
    mesh = parallel.make_mesh(data=2, fsdp=4)
    x = np.random.default_rng(0).standard_normal((16, 32), np.float32)
    w = np.random.default_rng(1).standard_normal((32, 64), np.float32)
    rule = parallel.parameter_sharding(mesh, min_size=1)
    split = jax.device_put(w, rule("w", w.shape))
    assert split.addressable_shards[0].data.shape == (32, 16)
    rows = jax.device_put(x, parallel.batch_sharding(mesh))
    product = jax.jit(jnp.matmul, out_shardings=parallel.batch_sharding(mesh))(rows, split)
    np.testing.assert_allclose(product, x @ w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "most", "seen"), [(6, 4, 3), (6, 6, 6), (5, 4, 1), (6, 9, 6)])
@pytest.mark.parametrize("shape", [(8, 1), (2, 2)])
def test_rows_are_computed_in_slices_of_each_device(shape, rows, most, seen):
    """The values in their places, no row sent, and only a slice's at a time."""
    mesh = parallel.make_mesh(*shape, jax.devices()[: shape[0] * shape[1]])
    array = np.arange(rows * mesh.size * 3, dtype=np.float32).reshape(-1, 3)
    sizes = []

    def function(rows):
        sizes.append(len(rows))
        return {"sum": rows.sum(1), "twice": [2 * rows]}

    sliced = jax.jit(
        lambda rows: parallel.in_slices(function, rows, most, mesh.size),
        in_shardings=parallel.batch_sharding(mesh),
        out_shardings=parallel.batch_sharding(mesh),
    )
    assert collectives(sliced.lower(array).compile().as_text()) == {}
    assert set(sizes) == {seen * mesh.size}
    got = sliced(array)
    np.testing.assert_array_equal(got["sum"], array.sum(1))
    np.testing.assert_array_equal(got["twice"][0], 2 * array)
