"""The adapter against the same in PyTorch, through files of the authors' keys, both ways."""

import dataclasses
import importlib.util

import numpy as np
import pytest
from flax import nnx

from pea_jax.models.adapter import Adapter, AdapterConfig
from pea_jax.tasks.convert import convert
from pea_jax.tasks.export import TEMPLATES
from pea_jax.weights.adapters import load_adapter, save_adapter
from pea_jax.weights.load import load_module
from tests.models.random_module import random_module
from tests.parity.reference import jitted, randomise, relative_error

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file


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


class Biased(torch.nn.Module):
    """The released file of fc1, fc2 and fc3."""

    def __init__(self, inputs: int, hidden: int, outputs: int, pooled: int):
        super().__init__()
        self.layernorm = torch.nn.LayerNorm(inputs)
        self.fc1 = torch.nn.Linear(inputs, hidden)
        self.fc2 = torch.nn.Linear(hidden, pooled)
        self.fc3 = torch.nn.Linear(pooled, outputs)

    def forward(self, x):
        hidden = self.fc2(torch.nn.functional.gelu(self.fc1(self.layernorm(x))))
        return self.fc3(torch.nn.functional.gelu(hidden)), hidden.mean(dim=1)


def reference(config: AdapterConfig) -> torch.nn.Module:
    sizes = config.input_width, config.hidden_width, config.output_width
    if config.bias:
        return randomise(Biased(*sizes, config.pooled_width))
    return randomise(Reference(*sizes, config.projector_layers, config.pooled_width))


#: The layouts of method.md's table, which differ in their widths otherwise.
LAYOUTS = {
    "sd": AdapterConfig(12, 16, 8),
    "sd, five layers": AdapterConfig(12, 16, 8, projector_layers=5),
    "sdxl": AdapterConfig(12, 16, 8, pooled_width=10),
    "pytorch_model_pg.bin": AdapterConfig(12, 16, 8, projector_layers=4, pooled_width=10),
    "pytorch_model.bin": AdapterConfig(12, 16, 8, projector_layers=2, pooled_width=10, bias=True),
}


def assert_same_outputs(adapter, module, x):
    """As small inputs as the norm's eps, 1e-5, can show in; a tanh GELU alone is 1e-4 off."""
    tokens, pooled = module(torch.from_numpy(x))
    got = jitted(adapter)(x)
    assert relative_error(got.tokens, tokens) < 2e-6
    if pooled is None:
        assert got.pooled is None
    else:
        assert relative_error(got.pooled, pooled) < 2e-6


@pytest.fixture
def x(rng):
    return (0.01 * rng.normal(size=(2, 7, 12))).astype(np.float32)


@pytest.mark.parametrize("layout", ["sd", "sd, five layers", "sdxl"])
def test_same_as_pytorch(tmp_path, x, layout):
    """Wiring, norm and GELU, without a reader of adapters between."""
    config = LAYOUTS[layout]
    module = reference(config)
    save_file(module.state_dict(), tmp_path / "adapter.safetensors")
    build = lambda: Adapter(config, rngs=nnx.Rngs(0))  # noqa: E731
    assert_same_outputs(load_module(build, tmp_path / "adapter.safetensors"), module, x)


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "module."])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_released_file_computes_what_its_authors_module_does(tmp_path, x, layout, wrapped):
    """A pickle in half precision, recognised by its tensors alone."""
    module = reference(LAYOUTS[layout]).half()
    prefix = "module." if wrapped else ""
    file = tmp_path / "pytorch_model.bin"
    torch.save({f"{prefix}{key}": value for key, value in module.state_dict().items()}, file)
    adapter = load_adapter(file)
    assert adapter.config == LAYOUTS[layout]
    assert_same_outputs(adapter, module.float(), x)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_authors_module_loads_what_we_write(tmp_path, x, layout):
    """strict=True, from an export of ours and from its conversion to the authors' own format."""
    config = LAYOUTS[layout]
    adapter = random_module(lambda: Adapter(config, rngs=nnx.Rngs(0)))
    names = {"base_model": "a", "language_encoder": "b"}
    save_adapter(tmp_path / "ours", adapter, metadata=names)
    convert(tmp_path / "ours", output=tmp_path / "theirs", format="torch")
    for tensors in (
        load_file(tmp_path / "ours" / "adapter.safetensors"),
        torch.load(tmp_path / "theirs" / "pytorch_model.bin", weights_only=True),
    ):
        module = reference(config)
        module.load_state_dict(tensors, strict=True)
        assert_same_outputs(adapter, module, x)


def test_the_exported_component_has_the_biased_layout_too(tmp_path, x):
    """The class that an exported folder brings for diffusers; parity of the others is in
    test_export and test_export_xl.
    """
    pytest.importorskip("diffusers")
    spec = importlib.util.spec_from_file_location("pea_adapter", TEMPLATES / "pea_adapter.py")
    template = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(template)
    config = LAYOUTS["pytorch_model.bin"]
    adapter = random_module(lambda: Adapter(config, rngs=nnx.Rngs(0)))
    save_adapter(tmp_path, adapter, metadata={"base_model": "a", "language_encoder": "b"})
    module = template.PEAAdapter(**dataclasses.asdict(config)).requires_grad_(False)
    module.load_state_dict(load_file(tmp_path / "adapter.safetensors"), strict=True)
    assert_same_outputs(adapter, module, x)
