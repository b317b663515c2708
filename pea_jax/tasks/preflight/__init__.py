"""`pea-jax preflight`: what a run's programs need of a chip, compiled without it.

topology   devices to compile for, at hand or not
programs   the train step and the sampler of a config, from shapes
hlo        what is counted in a compiled program's text
roofline   memory, FLOPs, bytes and the least time of one chip
report     what is printed of it, and what to change where it does not fit
tune       the search for the fastest that fits
task       the command
"""

from pea_jax.tasks.preflight.task import preflight

__all__ = ["preflight"]
