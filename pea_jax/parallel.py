"""The mesh, what lies where on it, and everything that asks which process this is.

One mesh of two axes serves every size of machine: `data` splits batches and replicates parameters,
`fsdp` splits both. A batch is thus split over all devices, and a large frozen parameter over the
`fsdp` ones, to be gathered by XLA where a layer needs it.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")

#: Smaller parameters are replicated: a gather would cost more than their memory is worth.
MIN_SHARDED_SIZE = 2**16


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (all of all processes, if None), with Auto axes "data" and "fsdp".

    One of the two sizes may be -1: what the other leaves.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
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


def initialize() -> None:
    """Join the other processes of the run, before any device is touched; alone it does nothing.

    A run over several hosts sets JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID for
    each of its processes. One that cannot join raises: it must not train a model of its own.

    Raises:
      ValueError: only some of the three are set.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    if not given:
        return
    if len(given) < len(names):
        raise ValueError(f"expected all of {', '.join(names)} in the environment, got {given}")
    address, count, index = given.values()
    jax.distributed.initialize(address, num_processes=int(count), process_id=int(index))


def process_index() -> int:
    """Which of the processes this is, from 0."""
    return jax.process_index()


def process_count() -> int:
    """How many processes run this program together."""
    return jax.process_count()


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over all devices, the others whole."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def data_shards(mesh: Mesh) -> int:
    """Into how many parts `batch_sharding` splits a batch."""
    return mesh.size


def platform(mesh: Mesh) -> str:
    """What the devices are: "cpu", "gpu" or "tpu". They need not be of this machine."""
    return mesh.devices.flat[0].platform


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays put where `sharding` says; and shapes of arrays, told that they will be there."""

    def put(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        return jax.device_put(leaf, sharding)

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


def to_global(tree: Any, mesh: Mesh) -> Any:
    """Numpy arrays [b, ...], each process's own rows, as global arrays split over all devices.

    The global batch is the processes' rows, one process after another in the order of the mesh.

    Raises:
      ValueError: an array's rows do not divide by this process's devices, by path.
    """
    sharding = batch_sharding(mesh)
    local = len(mesh.local_devices)
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    uneven = {
        jax.tree_util.keystr(path): np.shape(leaf)
        for path, leaf in leaves
        if np.ndim(leaf) == 0 or np.shape(leaf)[0] % local
    }
    if uneven:
        raise ValueError(f"expected rows that divide by {local} local devices, got {uneven}")
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), tree)
