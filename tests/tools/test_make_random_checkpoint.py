"""What the tool writes in the published formats, our loaders read."""

import importlib.util
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from pea_jax.weights.adapters import load_adapter
from pea_jax.weights.bases import BaseSpec, load_base
from pea_jax.weights.language import load_language_encoder

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

FILE = Path(__file__).parents[2] / "tools" / "make_random_checkpoint.py"
ENCODERS = ("xlm-roberta-large", "mul_clip", "chinese_clip", "cn_clip", "alt_clip", "mt5-xl")


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location(FILE.stem, FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[FILE.stem] = module  # dataclasses look it up
    path = list(sys.path)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path[:] = path
        del sys.modules[FILE.stem]


@pytest.mark.parametrize(
    "model", ["sd15", "sd21", "sdxl", "sdxl-turbo", "sdxl-inpainting", "ssd1b"]
)
def test_base_models_load(tool, model, tmp_path):
    tool.write_model(model, tmp_path / model, dtype="float32", small=True)
    base = load_base(BaseSpec(tmp_path / model))
    ids, mask = base.tokenizer(["a red circle"])
    assert ids.shape == mask.shape == (1, 77 if model in ("sd15", "sd21") else 2 * 77)
    assert base.unet.config.in_channels == (9 if model == "sdxl-inpainting" else 4)
    assert bool(base.unet.mid_block.attentions) == (model != "ssd1b")


@pytest.mark.parametrize("model", ENCODERS)
def test_language_encoders_load(tool, model, tmp_path):
    tool.write_model(model, tmp_path / model, dtype="float16", small=True)
    encoder = load_language_encoder(tmp_path / model, max_length=52)
    ids, mask = encoder.tokenizer(["一只猫", ""])
    tokens = np.asarray(encoder.tower(jnp.asarray(ids), jnp.asarray(mask)).tokens)
    assert tokens.shape == (2, 52, encoder.width)
    assert np.isfinite(tokens).all()
    assert tokens.std() > 0.1


def test_adapters_load(tool, tmp_path):
    counts = tool.write_model("adapters", tmp_path / "adapters", small=True)
    for file in counts:
        adapter = load_adapter(tmp_path / "adapters" / file)
        assert adapter.config.bias == ("sdxl_fc" in file)
        assert (adapter.config.pooled_width is None) == ("sd15" in file)


def test_what_cannot_be_is_one_line(tool, tmp_path, capsys, monkeypatch):
    (tmp_path / "mine").write_text("")
    monkeypatch.setattr(sys, "argv", ["tool", "sd15", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        tool.main()
    assert "expected a new or an empty folder" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
