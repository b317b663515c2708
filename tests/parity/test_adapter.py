"""The adapter against the same in PyTorch, through a file of the authors' keys."""

import numpy as np
import pytest
from flax import nnx

from pea_jax.models.adapter import Adapter, AdapterConfig
from pea_jax.weights.load import load_module
from tests.parity.reference import jitted, randomise, relative_error

torch = pytest.importorskip("torch")
from safetensors.torch import save_file


class Reference(torch.nn.Module):
    """method.md, "The adapter", in the layers that its key names stand for."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int, pooled: int | None):
        super().__init__()
        widths = [inputs, *[hidden] * (layers - 1), pooled or outputs]
        parts = []
        for i in range(layers):
            parts += [torch.nn.Linear(widths[i], widths[i + 1], bias=False), torch.nn.GELU()]
        self.layernorm = torch.nn.LayerNorm(inputs)
        self.projector = torch.nn.Sequential(*parts[:-1])
        self.fc = torch.nn.Linear(pooled, outputs) if pooled else None

    def forward(self, x):
        hidden = self.projector(self.layernorm(x))
        if self.fc is None:
            return hidden, None
        return self.fc(torch.nn.functional.gelu(hidden)), hidden.mean(dim=1)


@pytest.mark.parametrize(("layers", "pooled"), [(3, None), (5, None), (3, 10)])
def test_same_as_pytorch(tmp_path, rng, layers, pooled):
    """Wiring, norm and GELU: a tanh GELU alone is 1e-4 off."""
    reference = randomise(Reference(12, 16, 8, layers, pooled))
    file = tmp_path / "adapter.safetensors"
    save_file(reference.state_dict(), file)
    config = AdapterConfig(12, 16, 8, projector_layers=layers, pooled_width=pooled)
    adapter = load_module(lambda: Adapter(config, rngs=nnx.Rngs(0)), file)
    # as small as the norm's eps, 1e-5, can show in
    x = (0.01 * rng.normal(size=(2, 7, 12))).astype(np.float32)
    tokens, mean = reference(torch.from_numpy(x))
    got = jitted(adapter)(x)
    assert relative_error(got.tokens, tokens) < 2e-6
    if pooled is None:
        assert got.pooled is None
    else:
        assert relative_error(got.pooled, mean) < 2e-6
