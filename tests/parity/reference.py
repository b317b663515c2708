"""What the parity tests share: a random PyTorch model on disk, and the distance to it."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random values in every parameter, the norms' and biases too, which start as ones and zeros.

    Two biases that were swapped, or a scale that was left out, would not show otherwise.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            noise = noise * (1 if "embed" in name else parameter[0].numel() ** -0.5)
        elif re.search(r"norm\w*\.weight$", name, re.IGNORECASE):
            noise = 1 + 0.3 * noise
        else:
            noise = 0.3 * noise
        parameter.data.copy_(noise)
    return module.eval().requires_grad_(False)


def save(module: torch.nn.Module, folder: Path) -> Path:
    """`module`, saved as diffusers and transformers do; the file of its weights."""
    module.save_pretrained(folder, max_shard_size="20GB")
    (file,) = folder.glob("*.safetensors")
    return file


def read_config(file: Path) -> dict:
    """The config.json beside a file of weights."""
    return json.loads((file.parent / "config.json").read_text())


def jitted(module: nnx.Module, method: str = "__call__"):
    """`module.method` as one compiled function of arrays, its weights an argument."""
    graph, state = nnx.split(module)
    run = jax.jit(lambda state, *arrays: getattr(nnx.merge(graph, state), method)(*arrays))
    return lambda *arrays: run(state, *arrays)


def to_torch(images: np.ndarray) -> torch.Tensor:
    """NHWC -> NCHW."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))


def from_torch(images: torch.Tensor) -> np.ndarray:
    """NCHW -> NHWC."""
    return np.moveaxis(images.detach().numpy(), 1, -1)


def relative_error(got, want) -> float:
    """The largest difference over the largest value; inf where a value is not finite."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"expected {want.shape}, got {got.shape}"
    if not (np.isfinite(got).all() and np.isfinite(want).all()):
        return float("inf")
    return float(np.abs(got - want).max() / np.abs(want).max())
