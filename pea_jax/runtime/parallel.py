"""The device mesh, and the placement of arrays on it.

One mesh of two axes serves every size of machine: `data` splits batches and replicates parameters,
`fsdp` splits both. A batch is split over all devices. A large frozen parameter is split over the
`fsdp` devices, and XLA gathers it where a layer needs it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pea_jax.runtime import processes

AXES = ("data", "fsdp")

#: Smaller parameters are replicated: a gather would cost more than their memory is worth.
MIN_SHARDED_SIZE = 2**16


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (None: all devices of all processes), with Auto axes "data" and "fsdp".

    One of the two sizes may be -1: the other then determines it.

    Raises:
      ValueError: the sizes do not multiply to the number of devices; or devices of other processes
        are visible that `processes.initialize` did not join (the VMs of a TPU slice see each other
        without it, but cannot save together).
    """
    count = processes.process_count()
    if devices is None and count > 1 and not processes.is_distributed():
        raise ValueError(f"this is one of {count} processes: give --distributed")
    devices = jax.devices() if devices is None else list(devices)
    sizes = [data, fsdp]
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known > 0 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        raise ValueError(
            f"expected data * fsdp = {len(devices)} devices (one of them may be -1), "
            f"got data={data}, fsdp={fsdp}"
        )
    # make_mesh lays neighbours in the torus on the last axis, which gathers parameters.
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over all devices, the others whole."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def data_shards(mesh: Mesh) -> int:
    """The number of parts into which `batch_sharding` splits a batch."""
    return mesh.size


def platform(mesh: Mesh | None) -> str:
    """The platform of the mesh's devices: "cpu", "gpu" or "tpu"; None: of jax's default device.

    The devices may be absent: a program for TPUs can be compiled on a machine without one.
    """
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays moved to `sharding`; shapes of arrays get it as their sharding.

    Where there are several processes, an array is global already, or equal on all of them and
    `sharding` replicates it (`to_global` is for rows).
    """

    def put(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        if processes.process_count() == 1 or not getattr(leaf, "is_fully_addressable", True):
            return jax.device_put(leaf, sharding)
        copies = [jax.device_put(leaf, device) for device in own_devices(sharding.mesh)]
        return jax.make_array_from_single_device_arrays(
            np.shape(leaf), sharding, copies, dtype=copies[0].dtype
        )

    return jax.tree.map(put, tree)


def parameter_sharding(
    mesh: Mesh, min_size: int = MIN_SHARDED_SIZE
) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """The rule of frozen parameters: (key, shape) -> sharding, as `load_module` takes it.

    A parameter of at least `min_size` elements is split over "fsdp" along its largest divisible
    axis (the last of equals); any other is replicated.
    """
    parts = mesh.shape["fsdp"]

    def rule(key: str, shape: tuple[int, ...]) -> NamedSharding:
        del key  # the rule goes by size alone
        axes = [axis for axis, size in enumerate(shape) if size % parts == 0]
        if parts == 1 or math.prod(shape) < min_size or not axes:
            return replicated(mesh)
        largest = max(axes, key=lambda axis: (shape[axis], axis))
        return NamedSharding(mesh, PartitionSpec(*(None,) * largest, "fsdp"))

    return rule


def own_devices(mesh: Mesh) -> list[jax.Device]:
    """This process's devices, in the order of the mesh."""
    return [
        device for device in mesh.devices.flat if device.process_index == processes.process_index()
    ]


def own_rows(count: int, mesh: Mesh) -> list[int]:
    """Numbers of this process's rows in a global batch of `count`, in the order of its devices."""
    rows = np.arange(count).reshape(mesh.size, -1)
    own = set(own_devices(mesh))
    places = [place for place, device in enumerate(mesh.devices.flat) if device in own]
    return rows[places].ravel().tolist()


def to_global(tree: Any, mesh: Mesh) -> Any:
    """Numpy arrays [b, ...], each process's own rows, as global arrays split over all devices.

    The global batch is the rows of all processes, in the order of the mesh: a process distributes
    its rows over its devices in their order. On a TPU slice, whose meshes follow the torus, the
    devices of one host are not always neighbours.

    Raises:
      ValueError: an array's rows do not divide by this process's devices, by path.
    """
    sharding = batch_sharding(mesh)
    own = own_devices(mesh)
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    uneven = {
        jax.tree_util.keystr(path): np.shape(leaf)
        for path, leaf in leaves
        if np.ndim(leaf) == 0 or np.shape(leaf)[0] % len(own)
    }
    if uneven:
        raise ValueError(f"expected rows that divide by {len(own)} local devices, got {uneven}")

    def place(leaf: np.ndarray) -> jax.Array:
        shape = (len(leaf) // len(own) * mesh.size, *leaf.shape[1:])
        parts = jax.device_put(np.split(leaf, len(own)), own)
        return jax.make_array_from_single_device_arrays(shape, sharding, parts)

    return jax.tree.map(place, tree)


def to_local(array: jax.Array, mesh: Mesh) -> np.ndarray:
    """This process's rows of a global array: the inverse of `to_global`."""
    parts = {shard.device: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[device]) for device in own_devices(mesh)])


def cut(tree: Any, slices: int, shards: int) -> Any:
    """Arrays [b, ...] as [slices, b / slices, ...]: every device's rows in equal slices.

    No row moves between devices.

    Args:
      tree: of arrays, traced or not, of rows in the order of `batch_sharding`.
      slices: divides every shard's rows.
      shards: of the batch (`data_shards`).
    """

    def cut_array(array: Any) -> jax.Array:
        rows = jnp.asarray(array).reshape(shards, slices, -1, *array.shape[1:])
        return rows.swapaxes(0, 1).reshape(slices, -1, *array.shape[1:])

    return jax.tree.map(cut_array, tree)


def in_slices(function: Callable[[Any], Any], rows: jax.Array, most: int, shards: int) -> Any:
    """`function(rows)`, computed in slices of each device's rows, one slice after another.

    Memory use and the size of the compiled program are those of one slice.

    Args:
      function: [b, ...] -> a tree of arrays [b, ...], row by row, for any b that `shards` divides.
      rows: [B, ...], traced, in the order of `batch_sharding`.
      most: rows of one device in a slice, at most; the largest divisor up to it is taken.
      shards: of the batch (`data_shards`).
    """
    each = len(rows) // shards
    fitting = [count for count in range(1, each + 1) if each % count == 0 and count <= most]
    slices = each // max(fitting)
    if slices == 1:
        return function(rows)

    def join(array: jax.Array) -> jax.Array:
        apart = array.reshape(slices, shards, -1, *array.shape[2:])
        return apart.swapaxes(0, 1).reshape(-1, *array.shape[2:])

    return jax.tree.map(join, jax.lax.map(function, cut(rows, slices, shards)))
