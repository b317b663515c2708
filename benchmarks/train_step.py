"""Time of a train step, relative to one forward pass of the UNet on the same rows.

    python benchmarks/train_step.py [--batch 32] [--native 8] [--image-size 64] [--steps 20]
        [--base tinyworld/sd] [--language-encoder tinyworld/xlm-roberta] [--dtype float32]

The ratio is the result to compare. A step consists of a forward pass with gradient for the student,
a forward pass of the parallel rows for the teacher, and the encoders. Other programs on the machine
change both times; the programs run in turn, so the ratio of their medians changes less. FLOPs are
XLA's count.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pea_jax.diffusion.schedule import Schedule
from pea_jax.distill.losses import DistillSettings
from pea_jax.distill.optimizer import make_optimizer
from pea_jax.distill.state import Networks, init_train_state, split_networks
from pea_jax.distill.step import LossAndGradient, jit_train_step, make_train_step
from pea_jax.models.adapter import Adapter, AdapterConfig
from pea_jax.models.conditioning import Conditioning
from pea_jax.runtime import parallel
from pea_jax.weights.bases import BaseModel, BaseSpec, load_base
from pea_jax.weights.language import LanguageEncoder, load_language_encoder


def make_batch(
    options: argparse.Namespace, base: BaseModel, language: LanguageEncoder
) -> dict[str, dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    batch = {}
    rows = {"native": options.native, "parallel": options.batch - options.native}
    for name, count in rows.items():
        if not count:
            continue
        shape = (count, options.image_size, options.image_size, 3)
        ids, mask = language.tokenizer(["红色 圆形"] * count)
        batch[name] = {
            "pixels": generator.integers(0, 256, shape, dtype=np.uint8),
            "time_ids": np.tile(np.array([[*shape[1:3], 0, 0, *shape[1:3]]], np.int32), (count, 1)),
            "ids": ids,
            "mask": mask,
            "language": np.zeros(count, np.int32),
        }
        if name == "parallel":
            english_ids, english_mask = base.tokenizer(["a red circle"] * count)
            batch[name] |= {"english_ids": english_ids, "english_mask": english_mask}
    return batch


def parts(networks: Networks, frozen: dict[str, Any]) -> dict[str, Callable]:
    """Each network alone, as a compiled function of its inputs."""

    def compiled(name: str, run: Callable) -> Callable:
        graph = getattr(networks, name)
        program = jax.jit(lambda state, *inputs: run(nnx.merge(graph, state), *inputs))
        return lambda *inputs: program(frozen[name], *inputs)

    return {
        "UNet forward": compiled(
            "unet", lambda unet, x, t, conditioning, added: unet(x, t, conditioning, added)
        ),
        "VAE encoder": compiled("vae", lambda vae, pixels: vae.encode(pixels)),
        "language encoder": compiled("language_encoder", lambda tower, *inputs: tower(*inputs)),
    }


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="tinyworld/sd")
    parser.add_argument("--language-encoder", default="tinyworld/xlm-roberta")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--native", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--hidden-width", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()

    mesh = parallel.make_mesh()
    dtype = jnp.dtype(options.dtype)
    base = load_base(BaseSpec(options.base, dtype), mesh=mesh)
    language = load_language_encoder(options.language_encoder, dtype=dtype, mesh=mesh)
    width, pooled = base.unet.config.cross_attention_dim, base.unet.config.pooled_width
    adapter = AdapterConfig(language.width, options.hidden_width, width, pooled_width=pooled)
    (ids, mask), (english_ids, english_mask) = language.tokenizer([""]), base.tokenizer([""])
    empty = {"ids": ids, "mask": mask, "english_ids": english_ids, "english_mask": english_mask}
    networks, params, frozen = split_networks(
        unet=base.unet,
        vae=base.vae,
        text_encoder=base.text_encoder,
        language_encoder=language.tower,
        adapter=Adapter(adapter, rngs=nnx.Rngs(0)),
        empty=jax.device_put(empty, parallel.replicated(mesh)),
    )
    tx, _ = make_optimizer(1e-3, clip_norm=1.0)
    schedule = Schedule.from_dict(base.config.schedule)
    objective = LossAndGradient(networks, schedule, DistillSettings())
    step = jit_train_step(make_train_step(objective, tx), mesh)
    state = jax.device_put(init_train_state(params, tx), parallel.replicated(mesh))
    batch = parallel.to_global(make_batch(options, base, language), mesh)
    key = jax.random.key(0)

    start = time.perf_counter()
    program = step.lower(state, frozen, batch, key).compile()
    compile_time = time.perf_counter() - start
    flops = program.cost_analysis()["flops"]

    side = options.image_size // base.vae.config.downsampling_factor
    channels = base.unet.config.in_channels
    rows, length = options.batch, language.tokenizer.max_length
    conditioning = Conditioning(
        np.ones((rows, length, width), np.float32),
        None if pooled is None else np.ones((rows, pooled), np.float32),
    )
    inputs = {
        "UNet forward": (
            np.ones((options.batch, side, side, channels), np.float32),
            np.ones(options.batch, np.int32),
            conditioning,
            None if pooled is None else np.ones((rows, 6), np.float32),
        ),
        "VAE encoder": (
            np.ones((options.batch, options.image_size, options.image_size, 3), np.float32),
        ),
        "language encoder": language.tokenizer(["红色 圆形"] * options.batch),
    }
    inputs = parallel.to_global(inputs, mesh)
    alone = parts(networks, frozen)
    times: dict[str, list[float]] = {name: [] for name in ("train step", *alone)}
    for turn in range(options.steps + 1):
        start = time.perf_counter()
        state, metrics = program(state, frozen, batch, key)
        jax.block_until_ready(metrics)
        seconds = {"train step": time.perf_counter() - start}
        for name, call in alone.items():
            seconds[name] = timed(lambda: call(*inputs[name]))  # noqa: B023
        if turn:  # the first turn compiles
            for name, value in seconds.items():
                times[name].append(value)

    median = {name: statistics.median(values) for name, values in times.items()}
    device = jax.devices()[0].device_kind
    print(f"{jax.device_count()} x {device}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"compile {compile_time:.1f} s; {flops / 1e9:.1f} GFLOP a step")
    print("| program | median ms | relative to a UNet forward |")
    print("|---|---|---|")
    for name, seconds in median.items():
        ratio = seconds / median["UNet forward"]
        print(f"| {name} | {1e3 * seconds:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
