"""PEA-Diffusion in JAX: teach a frozen text-to-image model another language with a small adapter.

    import pea_jax
    pipeline = pea_jax.Pipeline.from_pretrained("tinyworld/sd")
    images = pipeline(["a red circle on a blue background"], steps=20, guidance_scale=5.0)

Importing this package imports nothing else: `Pipeline` is loaded at its first use.
"""

import importlib
from pathlib import Path

__version__ = "0.1.0"

__all__ = ["Pipeline", "__version__"]

# pea_jax.configs is a folder of the package where it is installed, and beside it in a checkout.
if not Path(__path__[0], "configs").is_dir():
    __path__.append(str(Path(__file__).parents[1]))


def __getattr__(name: str):
    if name == "Pipeline":
        return importlib.import_module("pea_jax.inference.pipeline").Pipeline
    raise AttributeError(f"module 'pea_jax' has no attribute {name!r}")
