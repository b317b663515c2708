"""What it saves to run the VAE on a few images of a device at a time, without a TPU.

    pip install -e '.[tpu]'
    python benchmarks/vae_slices.py [--topology v5e:2x2] [--rows 4]

The VAEs of SD 1.5 at 512x512 (bfloat16) and SDXL at 1024x1024 (float32, as its config requires) are
compiled for one TPU chip: encoding as in training, decoding as in sampling, with all rows at once
and with `rows_at_once` rows at a time.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pea_jax.assembly import trainer as runs
from pea_jax.cli import config as configs
from pea_jax.models.latents import rows_at_once
from pea_jax.runtime import parallel
from pea_jax.tasks.preflight import roofline, topology

ROOT = Path(__file__).parents[1]
CASES = {"sd15_zh": 512, "sdxl_zh": 1024}


def report(devices: list[jax.Device], name: str, verb: str, rows: int, most: int) -> Any:
    """The cost of the program that processes `most` of its rows at a time."""
    mesh = parallel.make_mesh(devices=devices)
    config = configs.load(ROOT / "configs" / f"{name}.py")
    trainer = runs.make_trainer(config, mesh, abstract=True)
    graph, weights = nnx.split(trainer.pipeline.base.vae)
    size = CASES[name]
    shape = (size, size, 3) if verb == "encode" else trainer.pipeline.latent_shape(size, size)
    batch = jax.ShapeDtypeStruct(
        (rows, *shape), jnp.float32, sharding=parallel.batch_sharding(mesh)
    )

    def program(weights: Any, batch: jax.Array) -> Any:
        vae = nnx.merge(graph, weights)
        return parallel.in_slices(getattr(vae, verb), batch, most, len(devices))

    lowered = jax.jit(program).lower(weights, batch)
    return roofline.measure(
        lowered,
        chip=topology.chip(devices),
        arguments={"weights": weights, "batch": batch},
        rows=rows,
        shards=len(devices),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--rows", type=int, default=4)
    options = parser.parse_args()
    devices = list(topology.devices(options.topology))[:1]
    print(f"{options.topology}, {options.rows} rows, jax {jax.__version__}")
    names = ["VAE", "pass", "rows at a time", "temporaries GB", "program GB", "TFLOP"]
    names += ["GB accessed", "compiled in s"]
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for name, size in CASES.items():
        for verb in ("encode", "decode"):
            for most in (options.rows, rows_at_once(size, size)):
                needs = report(devices, name, verb, options.rows, most)
                cells = [f"{name}, {size}x{size}", verb, str(most)]
                cells += [f"{needs.temporary_bytes / 1e9:.2f}", f"{needs.code_bytes / 1e9:.2f}"]
                cells += [f"{needs.flops / 1e12:.2f}", f"{needs.bytes / 1e9:.1f}"]
                print(f"| {' | '.join([*cells, f'{needs.compile_seconds:.0f}'])} |", flush=True)


if __name__ == "__main__":
    main()
