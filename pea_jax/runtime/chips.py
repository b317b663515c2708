"""Published figures of accelerators, for rooflines, utilisation and memory.

A figure is of one jax device, which is one chip (half of one on TPU v2 and v3, not listed here).
"""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Chip:
    """The figures of one device.

    Attributes:
      name: its common name.
      flops: peak bfloat16 multiplications and additions per second, dense.
      memory: bytes of high-bandwidth memory that a program may use.
      bandwidth: bytes per second between that memory and the cores.
      interconnect: bytes per second to the other chips of its slice or node, one way, over all
        links together.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    interconnect: float


_GIB = 2**30

#: By a pattern at the start of `jax.Device.device_kind`; the first match counts. Sources: Google's
#: system architecture page of each TPU version, NVIDIA's data sheets (without sparsity). The memory
#: of a TPU is the limit in the compiler's error for a program that does not fit, slightly less than
#: the chip's (libtpu 0.0.42.1).
CHIPS = {
    r"TPU v4$": Chip("v4", 275e12, 30.5 * _GIB, 1228e9, 300e9),
    r"TPU v5 ?(lite|e)": Chip("v5e", 197e12, 15.75 * _GIB, 819e9, 200e9),
    r"TPU v5(p|$)": Chip("v5p", 459e12, 95.74 * _GIB, 2765e9, 600e9),
    r"TPU v6 ?(lite|e)": Chip("v6e", 918e12, 31.25 * _GIB, 1640e9, 448e9),
    r"NVIDIA A100.*40GB": Chip("A100-40GB", 312e12, 40 * _GIB, 1555e9, 300e9),
    r"NVIDIA A100.*80GB": Chip("A100-80GB", 312e12, 80 * _GIB, 2039e9, 300e9),
    r"NVIDIA H100.*(HBM3|SXM)": Chip("H100", 989e12, 80 * _GIB, 3350e9, 450e9),
    r"NVIDIA H200": Chip("H200", 989e12, 141 * 10**9, 4800e9, 450e9),
    r"NVIDIA L4$": Chip("L4", 121e12, 24 * _GIB, 300e9, 32e9),
}


def find(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`; None where unknown, as for a CPU."""
    return next((chip for kind, chip in CHIPS.items() if re.match(kind, device_kind)), None)
