"""Networks of a few matrices with the interfaces of the real ones: they compile in no time.

Each notes, while it is traced, how many rows it was called with.
"""

import dataclasses
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pea_jax.diffusion.schedule import Schedule
from pea_jax.distill.state import split_networks
from pea_jax.families.english import EnglishText
from pea_jax.families.sd import SD
from pea_jax.models.adapter import Adapter, AdapterConfig
from pea_jax.models.text.towers import TextOutput
from tests.models.random_module import random_module

CHANNELS, TOKENS, WIDTH, LANGUAGE_WIDTH, VOCABULARY = 4, 5, 8, 6, 16
IMAGE = 8  # side; the fake VAE halves it
LANGUAGES = 2

#: Options for a compiler that is to be done soon.
QUICK = {"xla_backend_optimization_level": 0}

#: Network -> rows of every traced call.
CALLS: dict[str, list[int]] = defaultdict(list)


class FakeUNet(nnx.Module):
    def __init__(self, dtype=jnp.float32):
        leaf = {"rngs": nnx.Rngs(0), "dtype": dtype, "param_dtype": dtype}
        self.enter = nnx.Linear(CHANNELS, 16, **leaf)
        self.attend = nnx.Linear(WIDTH, 16, **leaf)
        self.leave = nnx.Linear(16, CHANNELS, **leaf)

    def __call__(self, latents, timesteps, conditioning, added=None):
        CALLS["unet"].append(latents.shape[0])
        context = jnp.tanh(self.attend(conditioning.tokens)).mean(axis=1)
        if conditioning.pooled is not None:
            context += conditioning.pooled.mean(axis=1, keepdims=True)
        context += (timesteps / 1000).astype(context.dtype)[:, None]
        down = jnp.tanh(self.enter(latents) + context[:, None, None])
        rows, height, width, features = down.shape
        mid = down.reshape(rows, height // 2, 2, width // 2, 2, features).mean(axis=(2, 4))
        up = jnp.tanh(down + mid.mean(axis=(1, 2), keepdims=True))
        return self.leave(up), {"down_0": down, "mid": mid, "up_0": up}


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    scaling_factor: float = 0.5


class FakeVAE(nnx.Module):
    def __init__(self, dtype=jnp.float32):
        self.config = VAEConfig()
        self.moments = nnx.Linear(3, 2 * CHANNELS, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=dtype)

    def encode(self, images):
        CALLS["vae"].append(images.shape[0])
        rows, height, width, colours = images.shape
        halved = images.reshape(rows, height // 2, 2, width // 2, 2, colours).mean(axis=(2, 4))
        return tuple(jnp.split(self.moments(halved), 2, axis=-1))


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    use_attention_mask: bool = False


class FakeTower(nnx.Module):
    """Every token sees the mean over all tokens that are not masked."""

    def __init__(self, name: str, width: int, dtype=jnp.float32, use_attention_mask: bool = False):
        self.name = name
        self.config = TowerConfig(use_attention_mask)
        self.embed = nnx.Embed(VOCABULARY, width, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=dtype)

    def __call__(self, ids, mask=None):
        CALLS[self.name].append(ids.shape[0])
        tokens = self.embed(ids)
        seen = jnp.ones_like(ids) if mask is None else mask
        weights = (seen / seen.sum(axis=1, keepdims=True)).astype(tokens.dtype)
        context = jnp.einsum("bl,bld->bd", weights, tokens)
        return TextOutput(tokens + context[:, None], None, ())


def modules(dtype=jnp.float32, pooled_width: int | None = None) -> dict[str, nnx.Module]:
    """Every network, with random parameters."""
    adapter = AdapterConfig(LANGUAGE_WIDTH, 12, WIDTH, pooled_width=pooled_width)
    return {
        "unet": random_module(lambda: FakeUNet(dtype), 1),
        "vae": random_module(lambda: FakeVAE(dtype), 2),
        "text_encoder": random_module(
            lambda: EnglishText(SD, [FakeTower("text_encoder", WIDTH, dtype)]), 3
        ),
        "language_encoder": random_module(
            lambda: FakeTower("language_encoder", LANGUAGE_WIDTH, dtype), 4
        ),
        "adapter": random_module(lambda: Adapter(adapter, rngs=nnx.Rngs(0)), 5),
    }


def empty_prompt() -> dict[str, np.ndarray]:
    """Token ids and masks of "": a start, an end, and padding."""
    ids = np.array([[1, 2, 0, 0, 0]], np.int32)
    mask = np.array([[1, 1, 0, 0, 0]], np.int32)
    return {"ids": ids, "mask": mask, "english_ids": ids + 3, "english_mask": mask}


def world(**options):
    """Networks, the adapter's parameters and the frozen argument of a fake world."""
    return split_networks(**modules(**options), empty=empty_prompt())


def schedule(prediction_type: str = "epsilon") -> Schedule:
    return Schedule(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
    )


def make_batch(native: int, parallel: int, *, image: int = IMAGE, vocabulary: int = VOCABULARY):
    """A batch of random pixels and tokens; a part of no rows is left out."""
    generator = np.random.default_rng(native + 100 * parallel)

    def tokens(rows):
        lengths = generator.integers(2, TOKENS + 1, (rows, 1))
        mask = (np.arange(TOKENS)[None] < lengths).astype(np.int32)
        ids = generator.integers(1, vocabulary, (rows, TOKENS), dtype=np.int32)
        return np.where(mask, ids, 0).astype(np.int32), mask

    batch = {}
    for name, rows in (("native", native), ("parallel", parallel)):
        if not rows:
            continue
        ids, mask = tokens(rows)
        pixels = generator.integers(0, 256, (rows, image, image, 3), dtype=np.uint8)
        time_ids = np.array([[image, image, 0, 0, image, image]] * rows, np.int32)
        batch[name] = {"pixels": pixels, "time_ids": time_ids, "ids": ids, "mask": mask}
        batch[name]["language"] = np.arange(rows, dtype=np.int32) % LANGUAGES
    if parallel:
        ids, mask = tokens(parallel)
        batch["parallel"] |= {"english_ids": ids, "english_mask": mask}
    return batch


def quick(function, **options):
    """`jax.jit` for small arrays: code that nobody optimised, in a third of the compile time."""
    return jax.jit(function, compiler_options=QUICK, **options)
