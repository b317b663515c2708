"""Memory and traffic of the attention implementations, from the TPU compiler, without a TPU.

    pip install -e '.[tpu]'
    python benchmarks/attention.py [--topology v5e:2x2]

Self-attention with its projections at the sizes of SDXL (1024 and 640 pixels) and SD 1.5 (512): one
image, bfloat16, forward pass and gradient. Temporaries and bytes are the compiler's counts for one
chip. They exclude the FLOPs of custom kernels.
"""

import argparse

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from pea_jax.models.attention.core import dot_product_attention
from pea_jax.tasks.preflight import topology

#: Tokens, heads, head size.
SHAPES = {
    "SDXL, 64x64": (4096, 10, 64),
    "SDXL, 32x32": (1024, 20, 64),
    "SDXL, 40x40": (1600, 10, 64),
    "SD 1.5, 64x64": (4096, 8, 40),
    "SD 1.5, 32x32": (1024, 8, 80),
}


def compiled(device: jax.Device, implementation: str, sizes: tuple[int, int, int], gradient: bool):
    """The program of one layer on one image."""
    length, heads, head_size = sizes
    width = heads * head_size

    def layer(x, weights):
        query, key, value = (
            (x @ weights[i]).reshape(1, length, heads, head_size) for i in range(3)
        )
        out = dot_product_attention(query, key, value, implementation=implementation)
        return out.reshape(x.shape) @ weights[3]

    def backward(x, weights, cotangent):
        return jax.vjp(lambda x: layer(x, weights), x)[1](cotangent)

    def array(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=SingleDeviceSharding(device))

    x, weights = array(1, length, width), array(4, width, width)
    program = (
        jax.jit(backward).lower(x, weights, x) if gradient else jax.jit(layer).lower(x, weights)
    )
    return program.compile()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:2x2")
    options = parser.parse_args()
    device = topology.devices(options.topology)[0]
    print(f"{options.topology}, jax {jax.__version__}")
    print("| layer | pass | implementation | temporaries MiB | bytes accessed MB |")
    print("|---|---|---|---|---|")
    for name, sizes in SHAPES.items():
        for gradient in (False, True):
            for implementation in ("xla", "splash"):
                program = compiled(device, implementation, sizes, gradient)
                temporaries = program.memory_analysis().temp_size_in_bytes / 2**20
                moved = program.cost_analysis()["bytes accessed"] / 1e6
                label = "gradient" if gradient else "forward"
                print(f"| {name} | {label} | {implementation} | {temporaries:.1f} | {moved:.0f} |")


if __name__ == "__main__":
    main()
