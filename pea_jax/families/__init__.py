"""The families of base models: all that differs between them, in one object each.

family    what a `Family` says
english   the English text side, as a family combines its towers
sd        Stable Diffusion 1.x and 2.x
sdxl      SDXL and what has its architecture: SDXL-Turbo, SSD-1B, SDXL inpainting
"""

from collections.abc import Collection

from pea_jax.families.family import Family
from pea_jax.families.sd import SD
from pea_jax.families.sdxl import SDXL

#: Every family, the most particular first.
FAMILIES = (SDXL, SD)


def family_of(parts: Collection[str]) -> Family:
    """The family of a base model whose model_index.json names these parts."""
    return next((one for one in FAMILIES if set(one.text_encoders) <= set(parts)), SD)
