"""How to sample, and the arguments of a call that go by prompt."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt32

#: Images per data shard of one program call, if no batch size is set.
IMAGES_PER_SHARD = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to sample.

    Attributes:
      steps: number of solver steps; each calls the UNet once.
      guidance_scale: scale of classifier-free guidance. At 1 or below there is no guidance, and no
        second half of the batch.
      guidance_rescale: 0 to 1; 1 restores the contrast of the unguided prediction.
      solver: a key of `diffusion.solvers.SOLVERS`.
      negative_prompt: one for all prompts, or one per prompt, in the language of the prompts.
      height: in pixels, a multiple of the VAE's factor; None is the UNet's training size.
      width: likewise.
      batch_size: prompts of one program call over all devices, rounded up to a multiple of the
        data shards; None is `IMAGES_PER_SHARD` a shard. Fewer prompts make a smaller batch.
    """

    steps: int = 30
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    solver: str = "dpmpp_2m"
    negative_prompt: str | Sequence[str] = ""
    height: int | None = None
    width: int | None = None
    batch_size: int | None = None

    @property
    def guided(self) -> bool:
        """Whether each step calls the UNet on the negative prompt too."""
        return self.guidance_scale > 1


def seeds_of(seed: int | Sequence[int], count: int) -> UInt32[np.ndarray, "N"]:
    """One seed a prompt; a single number is the first prompt's, and the following count up."""
    seeds = [seed + i for i in range(count)] if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise ValueError(f"seed: expected one number, or one a prompt ({count}), got {len(seeds)}")
    if not all(0 <= number < 2**32 for number in seeds):
        raise ValueError(f"seed: expected numbers from 0 to {2**32 - 1}, got {seeds}")
    return np.array(seeds, np.uint32)


def one_each(name: str, value: str | Sequence[str], count: int) -> list[str]:
    """`value` for each of `count` prompts."""
    values = [value] * count if isinstance(value, str) else list(value)
    if len(values) != count:
        raise ValueError(f"{name}: expected one, or one a prompt ({count}), got {len(values)}")
    return values
