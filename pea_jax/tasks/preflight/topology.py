"""The devices to compile for: local ones, or those of an absent TPU.

The TPU compiler comes with libtpu (`pip install 'pea-jax[tpu]'`) and needs no TPU.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from pea_jax.runtime import chips

LOCAL = "local"

#: The environment that libtpu needs on a machine without a TPU, its logging, and the permission to
#: load it in several processes, since none of them holds a device.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}

_EXAMPLES = "v5e:4x4, v6e:2x4, v5p:2x2x4 or v4:2x2x1, or local"


def devices(name: str) -> Sequence[jax.Device]:
    """The devices of a topology.

    TPU devices are for compiling only; jax's cache of compiled programs is then off. Unless this
    process has used jax before, its own computations run on the CPU: a local TPU stays free.

    Args:
      name: "local", or the generation and the shape of a TPU slice, as in "v5e:4x4".

    Raises:
      ValueError: there is no such slice, or libtpu is not installed.
    """
    if name == LOCAL:
        return jax.devices()
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"--topology {name}: needs libtpu, the TPU compiler: pip install 'pea-jax[tpu]'"
        )
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    jax.config.update("jax_platforms", "cpu")
    # Without its devices a compiler writes programs to the cache, of up to 120 MB, that it cannot
    # read back.
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it reads the setting only once
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--topology {name}: expected {_EXAMPLES} ({reason})") from error


def chip(devices: Sequence[jax.Device]) -> chips.Chip | None:
    """The figures of one device; None where unknown, as for a CPU."""
    found = chips.find(devices[0].device_kind)
    places = {tuple(device.coords) for device in devices if hasattr(device, "coords")}
    cores = len(devices) // len(places) if places else 1
    if found is None or cores == 1:
        return found
    # Here the two cores of a TPU v4 are separate devices.
    names = ("flops", "memory", "bandwidth", "interconnect")
    return dataclasses.replace(found, **{name: getattr(found, name) / cores for name in names})


def compiler() -> str | None:
    """The version of the TPU compiler; None where there is none."""
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return None
