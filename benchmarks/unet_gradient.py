"""What SDXL's UNet and its gradient keep and move, by the TPU compiler, without a TPU.

    pip install -e '.[tpu]'
    python benchmarks/unet_gradient.py [--size 1024 512] [--remat none blocks] [--topology v5e:2x2]

The prediction, and a scalar of it differentiated with respect to the conditioning (tokens and
pooled vector): bfloat16, one image a chip. Temporaries and bytes are the compiler's count for one
chip; the FLOPs of splash attention are added (`preflight.program`). The figures to beat are those
of MaxDiffusion's UNet for the same work.
"""

import argparse
import os
import time

os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies

from pea_jax import parallel
from pea_jax.models.conditioning import Conditioning
from pea_jax.models.rngs import OneKey
from pea_jax.models.unet import UNet, UNetConfig
from pea_jax.weights import published


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--size", type=int, nargs="+", default=[1024, 512])
    parser.add_argument("--remat", nargs="+", default=["none", "blocks"])
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--forward", action="store_true")
    parser.add_argument("--text", default="")
    options = parser.parse_args()
    devices = topologies.get_topology_desc(platform="tpu", topology_name=options.topology).devices
    mesh = parallel.make_mesh(devices=devices)
    config = UNetConfig.from_dict(published.UNET_XL)
    rows = len(devices)
    split, whole = parallel.batch_sharding(mesh), parallel.replicated(mesh)

    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

    for remat in options.remat:
        graph, state = nnx.split(
            nnx.eval_shape(
                lambda: UNet(
                    config,
                    rngs=OneKey(),
                    dtype=jnp.bfloat16,
                    param_dtype=jnp.bfloat16,
                    mesh=mesh,
                    remat=remat,
                    attention=options.attention,
                )
            )
        )
        state = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), state
        )

        def scalar(conditioning, state, latents, timesteps, added):
            prediction, _ = nnx.merge(graph, state)(latents, timesteps, conditioning, added)
            return jnp.sum(prediction.astype(jnp.float32) ** 2)

        for size in options.size:
            latents = array(rows, size // 8, size // 8, 4, dtype=jnp.float32)
            conditioning = Conditioning(array(rows, 77, 2048), array(rows, 1280))
            args = (
                conditioning,
                state,
                latents,
                array(rows, dtype=jnp.int32),
                array(rows, 6, dtype=jnp.float32),
            )
            fn = scalar if options.forward else jax.grad(scalar)
            t = time.time()
            program = jax.jit(fn).lower(*args)
            print("lowered", time.time() - t, flush=True)
            program = program.compile()
            cost, memory = program.cost_analysis(), program.memory_analysis()
            print(
                f"| {size} | {remat} | TFLOP {cost['flops'] / 1e12:.2f} | "
                f"GB {cost['bytes accessed'] / 1e9:.1f} | "
                f"temp {memory.temp_size_in_bytes / 1e9:.2f} | {time.time() - t:.0f} s",
                flush=True,
            )
            if options.text:
                with open(f"{options.text}_{size}_{remat}.hlo", "w") as f:
                    f.write(program.as_text())


if __name__ == "__main__":
    main()
