"""The mesh, what lies where on it, and everything that asks which process this is.

One mesh of two axes serves every size of machine: `data` splits batches and replicates parameters,
`fsdp` splits both. A batch is thus split over all devices, and a large frozen parameter over the
`fsdp` ones, to be gathered by XLA where a layer needs it.
"""

import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import multihost as ocp_multihost

AXES = ("data", "fsdp")

#: Smaller parameters are replicated: a gather would cost more than their memory is worth.
MIN_SHARDED_SIZE = 2**16


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (all of all processes, if None), with Auto axes "data" and "fsdp".

    One of the two sizes may be -1: what the other leaves.

    Raises:
      ValueError: the sizes do not multiply to the number of devices; or the devices of other
        processes are there, which `initialize` did not join (the VMs of a TPU slice know each other
        without it, but cannot save together).
    """
    if devices is None and process_count() > 1 and not is_distributed():
        raise ValueError(f"this is one of {process_count()} processes: give --distributed")
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


#: Set by hand for each process of a run.
_BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

#: What launchers set where they start several processes: Slurm, Open MPI, Cloud TPU on GKE.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES")


#: Seconds: longer than any process works between two places where it waits for the others.
_A_DAY = 24 * 60 * 60


def initialize(
    *,
    distributed: bool | None = None,
    preemptible: bool = False,
    join_timeout: int = 300,
    heartbeat_timeout: int = 60,
) -> None:
    """Join the other processes of the run, before any device is touched; alone it does nothing.

    One that is not joined by all others in time is ended with a line and status 1, and one that
    has lost them is ended by jax within the heartbeat's timeout: it must neither train a model of
    its own nor wait for ever.

    Args:
      distributed: True joins, by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID if
        they are set, or else as jax finds out on TPU pods, Slurm, Open MPI and Kubernetes. False is
        alone, whatever the environment says. None joins where the three are set.
      preemptible: whether SIGTERM is a notice that `preempted` tells all processes of, rather than
        the end of this one.
      join_timeout: seconds in which all have to come.
      heartbeat_timeout: seconds after which a silent process counts as dead.

    Raises:
      ValueError: only some of the three are set; or the environment is that of one process of
        several, and `distributed` is None.
      OSError: there is nothing to join.
    """
    given = {name: os.environ[name] for name in _BY_HAND if os.environ.get(name)}
    if distributed is None:
        _refuse_several(given)
    if distributed is False or (distributed is None and not given):
        return
    if given and len(given) < len(_BY_HAND):
        raise ValueError(f"expected all of {', '.join(_BY_HAND)} in the environment, got {given}")
    where: dict[str, Any] = {}
    who = ""
    if given:
        address, count, index = given.values()
        where = {
            "coordinator_address": address,
            "num_processes": _number(_BY_HAND[1], count),
            "process_id": _number(_BY_HAND[2], index),
            "cluster_detection_method": "deactivate",
        }
        who = f"process {index} of {count} at {address}: "
    jax.config.update("jax_enable_preemption_service", preemptible)
    # jax ends the process on its own timeout, with many lines: ours comes before it.
    alarm = threading.Timer(join_timeout, _not_all_came, [who, join_timeout])
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(
            **where,
            initialization_timeout=join_timeout + 60,
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=heartbeat_timeout,
        )
    except (ValueError, RuntimeError) as error:
        raise OSError(
            f"cannot join the other processes: expected a TPU pod, Slurm, Open MPI, Kubernetes, or "
            f"{', '.join(_BY_HAND)} in the environment ({error})"
        ) from error
    finally:
        alarm.cancel()


def _not_all_came(who: str, seconds: int) -> None:
    line = f"pea-jax: {who}not all processes of the run came within {seconds} s\n"
    os.write(2, line.encode())
    os._exit(1)


def _refuse_several(given: Mapping[str, str]) -> None:
    """Refuses to train alone what was started on several hosts: each would train its own model."""
    several = {name: os.environ[name] for name in _COUNTS if os.environ.get(name)}
    several = {
        name: value
        for name, value in several.items()
        if (value.count(",") if name == "TPU_WORKER_HOSTNAMES" else value != "1")
    }
    if several and not given:
        names = ", ".join(f"{name}={value}" for name, value in several.items())
        raise ValueError(
            f"this is one process of several ({names}): give --distributed to join them, or "
            "--no-distributed to run it alone"
        )


def _number(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{name}: expected a number, got {value!r}") from None


def is_distributed() -> bool:
    """Whether `initialize` joined other processes (or one process to itself)."""
    return jax.distributed.is_initialized()


def preempted(call: int) -> bool:
    """Whether all processes stop after this step, since one of them was told that it will end.

    To be called by every process at every step, with numbers that count up from 1; True on all of
    them at the same number, which is soon after the notice (SIGTERM) came.
    """
    return is_distributed() and multihost_utils.reached_preemption_sync_point(call)


def wait_for_all(name: str) -> None:
    """Every process waits here for the others; `name` tells one such place from another.

    The devices go on meanwhile. A process that doesn't come is noticed by its heartbeats.
    """
    ocp_multihost.get_barrier_sync_fn()(key=name, timeout_ms=_A_DAY * 1000)


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
    """Arrays put where `sharding` says; and shapes of arrays, told that they will be there.

    Of several processes each has the same arrays, unless they are global, and `sharding` leaves
    them whole (`to_global` is for rows).
    """

    def put(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        if process_count() == 1 or not getattr(leaf, "is_fully_addressable", True):
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
    return [device for device in mesh.devices.flat if device.process_index == process_index()]


def own_rows(count: int, mesh: Mesh) -> list[int]:
    """Numbers of this process's rows in a global batch of `count`, in the order of its devices."""
    each = count // mesh.size
    return [
        place * each + row
        for place, device in enumerate(mesh.devices.flat)
        if device.process_index == process_index()
        for row in range(each)
    ]


def to_global(tree: Any, mesh: Mesh) -> Any:
    """Numpy arrays [b, ...], each process's own rows, as global arrays split over all devices.

    The global batch is the rows of all processes. Where they lie in it follows the mesh: a process
    hands its rows out to its devices in their order, and on a TPU slice, whose meshes follow the
    torus, those of one host are not always neighbours.

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
    """This process's rows of a global array that is split as `to_global` does: its inverse."""
    parts = {shard.device: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[device]) for device in own_devices(mesh)])


def cut(tree: Any, slices: int, shards: int) -> Any:
    """Arrays [b, ...] as [slices, b / slices, ...]: every device's rows in equal slices.

    So no row moves between devices.

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
    """`function(rows)` of a function that treats rows alike, a few of each device's after another.

    The memory is that of a slice, and so is the program that is compiled.

    Args:
      function: [b, ...] -> a tree of arrays [b, ...], for any b that `shards` divides.
      rows: [B, ...], traced, in the order of `batch_sharding`.
      most: of one device's rows at once. It is the largest count up to that which divides them.
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


def gather(value: int) -> list[int]:
    """The `value` of every process, in their order; all of them call this together."""
    if process_count() == 1:
        return [value]
    return multihost_utils.process_allgather(np.int32(value)).tolist()


def of_first(values: Sequence[int]) -> list[int]:
    """The `values` of the first process, on all of them; all call this together."""
    if process_count() == 1:
        return list(values)
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(values))))
    mine = np.resize(np.array([*values, 0], np.int32), count)
    return multihost_utils.broadcast_one_to_all(mine).tolist()
