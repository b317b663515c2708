"""PEA-Diffusion in JAX: teach a frozen text-to-image model another language with a small adapter.

    import pea_jax
    pipeline = pea_jax.Pipeline.from_pretrained("tinyworld/sd")
    images = pipeline(["a red circle on a blue background"], steps=20, guidance_scale=5.0)

Importing this package imports nothing else: `Pipeline` is loaded when it is first asked for.
"""

import importlib

__version__ = "0.1.0"

__all__ = ["Pipeline", "__version__"]


def __getattr__(name: str):
    if name == "Pipeline":
        return importlib.import_module("pea_jax.inference.pipeline").Pipeline
    raise AttributeError(f"module 'pea_jax' has no attribute {name!r}")
