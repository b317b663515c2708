"""Memory and traffic of SDXL's UNet and its gradient, from the TPU compiler, without a TPU.

    pip install -e '.[tpu]'
    python benchmarks/unet_gradient.py [--size 1024 512] [--remat none blocks] [--topology v5e:2x2]

A scalar function of the prediction is differentiated with respect to the conditioning (tokens and
pooled vector): bfloat16, one image per chip. Temporaries and bytes are the compiler's counts for
one chip. The compiler does not count the FLOPs of splash attention; `pea_jax.tasks.preflight.hlo`
adds them. The reference figures are those of MaxDiffusion's SDXL UNet of August 2026 for the same
work, with dot-product attention and no remat; its splash attention did not compile with 77 tokens.
"""

import argparse

import jax
import jax.numpy as jnp
from flax import nnx

from pea_jax.models.conditioning import Conditioning
from pea_jax.models.rngs import OneKey
from pea_jax.models.unet.unet import UNet, UNetConfig
from pea_jax.runtime import parallel
from pea_jax.tasks.preflight import roofline, topology
from pea_jax.weights.builtin_configs import read_config
from pea_jax.weights.load import abstract_module

#: MaxDiffusion's TFLOP, GB accessed and GB of temporaries, by image size.
TO_BEAT = {512: (3.44, 68.5, 2.47), 1024: (15.0, 212.0, 10.4)}
LENGTH, WIDTH, POOLED = 77, 2048, 1280


def gradient(mesh: jax.sharding.Mesh, size: int, remat: str, attention: str) -> roofline.Cost:
    """The cost of the program for pictures of `size` by `size` pixels."""
    config = UNetConfig.from_dict(read_config("sdxl/unet/config.json"))
    types = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}

    def build() -> UNet:
        options = {"mesh": mesh, "remat": remat, "attention": attention}
        return UNet(config, rngs=OneKey(), **types, **options)

    unet = abstract_module(build, sharding=lambda key, shape: parallel.replicated(mesh))
    graph, weights = nnx.split(unet)

    def scalar(conditioning, weights, latents, timesteps, time_ids):
        unet = nnx.merge(graph, weights)
        prediction, _ = unet(latents, timesteps, conditioning, time_ids)
        return jnp.sum(jnp.square(prediction.astype(jnp.float32)))

    def array(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
        sharding = parallel.batch_sharding(mesh)
        return jax.ShapeDtypeStruct((mesh.size, *shape), dtype, sharding=sharding)

    batch = {
        "conditioning": Conditioning(
            array(LENGTH, WIDTH, dtype=jnp.bfloat16), array(POOLED, dtype=jnp.bfloat16)
        ),
        "latents": array(size // 8, size // 8, 4),
        "timesteps": array(dtype=jnp.int32),
        "time_ids": array(6),
    }
    conditioning, *others = batch.values()
    lowered = jax.jit(jax.grad(scalar)).lower(conditioning, weights, *others)
    return roofline.measure(
        lowered,
        chip=topology.chip(mesh.devices.flatten()),
        arguments={"weights": weights, "batch": batch},
        rows=1,
        shards=mesh.size,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--size", type=int, nargs="+", default=[512, 1024], choices=TO_BEAT)
    parser.add_argument("--remat", nargs="+", default=["none", "blocks"])
    parser.add_argument("--attention", default="auto")
    options = parser.parse_args()
    mesh = parallel.make_mesh(devices=topology.devices(options.topology))
    print(f"{options.topology}, jax {jax.__version__}, attention {options.attention}")
    print(
        "| pixels | remat | TFLOP | GB | of theirs | temporaries GB | of theirs | compiled in s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for size in options.size:
        _, their_bytes, their_temporaries = TO_BEAT[size]
        for remat in options.remat:
            report = gradient(mesh, size, remat, options.attention)
            moved, kept = report.bytes / 1e9, report.temporary_bytes / 1e9
            cells = [size, remat, f"{report.flops / 1e12:.2f}"]
            cells += [f"{moved:.1f}", f"{moved / their_bytes:.2f}"]
            cells += [f"{kept:.2f}", f"{kept / their_temporaries:.2f}"]
            cells += [f"{report.compile_seconds:.0f}"]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
