"""`pea-jax preflight`: the cost of a run's programs, compiled without the run's devices.

topology   devices to compile for, present or not
workloads  the train step and the sampler of a config, compiled from shapes
hlo        counts in the text of a compiled program, which hlo_text parses
roofline   memory, FLOPs, bytes and the least time of one chip
report     the printed tables, and advice where a program does not fit
tune       the search for the fastest choice that fits
task       the command
"""

from pea_jax.tasks.preflight.task import preflight

__all__ = ["preflight"]
