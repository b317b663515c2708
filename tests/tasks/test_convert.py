"""`pea-jax convert`: there and back for every layout, and what it says and refuses."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pea_jax.cli import main
from pea_jax.tasks import convert
from pea_jax.weights.adapters import load_adapter, read_adapter, read_adapter_config
from pea_jax.weights.load import read_tensors
from pea_jax.weights.pickles import serialize_pickle
from tests.weights.test_adapters import LAYOUTS, METADATA, SDXL, adapter_of, file_of

NAMES = ("--language-encoder", "some/encoder", "--base", "some/base")


def run(capsys, *arguments):
    """Status, lines of standard output, lines of standard error."""
    status = main.main(["convert", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out.splitlines(), err.splitlines()


def tensors_of(layout: str, dtype) -> dict[str, np.ndarray]:
    """Random tensors of a layout, an eighth of its widths."""
    rng = np.random.default_rng(0)
    _, shapes = LAYOUTS[layout]
    return {
        key: rng.normal(size=[size // 8 for size in shape]).astype(dtype)
        for key, shape in shapes.items()
    }


def assert_equal(got, expected):
    assert set(got) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(got[key], value, strict=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back_is_bit_equal(tmp_path, layout):
    """The authors' file -> ours -> the authors'."""
    pytest.importorskip("torch")
    dtype = jnp.bfloat16 if layout == "sd 1.5" else np.float16
    tensors = tensors_of(layout, dtype)
    official = tmp_path / "official.bin"
    official.write_bytes(
        serialize_pickle({f"module.{key}": value for key, value in tensors.items()})
    )
    ours = convert.convert(official, output=tmp_path / "ours", language_encoder="a", base="b")
    assert_equal(load_file(ours / "adapter.safetensors"), tensors)
    theirs = convert.convert(ours, output=tmp_path / "theirs", format="torch")
    assert [file.name for file in theirs.iterdir()] == ["pytorch_model.bin"]
    assert_equal(read_tensors(theirs / "pytorch_model.bin"), tensors)
    again = convert.convert(theirs / "pytorch_model.bin", output=tmp_path / "again")
    assert_equal(load_file(again / "adapter.safetensors"), tensors)


def test_it_says_what_it_read_and_wrote(tmp_path, capsys):
    file = tmp_path / "official.safetensors"
    save_file(tensors_of("pytorch_model.bin", np.float16), file)
    status, out, err = run(capsys, file, "--output", tmp_path / "out", *NAMES)
    assert (status, err) == (0, [])
    assert out == [
        f"{file}: an adapter of layernorm, fc1, fc2, fc3; widths 128 -> 128 -> 160 (pooled) -> "
        "256; 78,624 parameters, float16",
        f"{tmp_path / 'out'}: adapter.safetensors, config.json (float16)",
    ]
    config, metadata = read_adapter_config(tmp_path / "out")
    assert (config.projector_layers, config.pooled_width, config.bias) == (2, 160, True)
    assert (metadata["language_encoder"], metadata["base_model"]) == ("some/encoder", "some/base")


def test_a_folder_of_ours_keeps_what_it_says_of_itself(tmp_path, capsys):
    made = tmp_path / "made"
    file_of(tmp_path / "official.safetensors", SDXL)  # leaves its export in made/
    metadata = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps(metadata | {"pea_jax_version": "0"}))
    assert run(capsys, made, "--output", tmp_path / "same")[0] == 0
    assert json.loads((tmp_path / "same" / "config.json").read_text()) == metadata
    assert run(capsys, made, f"--output={tmp_path / 'named'}", *NAMES[:2])[0] == 0
    named = json.loads((tmp_path / "named" / "config.json").read_text())
    assert named == metadata | {"language_encoder": "some/encoder"}
    assert named["step"] == METADATA["step"]


def test_the_type_is_changed_where_asked(tmp_path, capsys):
    file = tmp_path / "official.safetensors"
    tensors = file_of(file, SDXL, np.float32)
    arguments = (file, "--output", tmp_path / "half", "--dtype", "float16")
    _, out, _ = run(capsys, *arguments)
    assert out[0].endswith("parameters, float32")
    assert out[1].endswith("(float16)")
    halves = {key: value.astype(np.float16) for key, value in tensors.items()}
    assert_equal(load_file(tmp_path / "half" / "adapter.safetensors"), halves)
    assert load_adapter(tmp_path / "half").config == SDXL

    tensors["fc.bias"][3] = 1e6
    save_file(tensors, file)
    status, _, err = run(capsys, *arguments[:2], tmp_path / "new", *arguments[3:])
    assert (status, len(err)) == (1, 1)
    assert err[0].endswith("official.safetensors: fc.bias has values beyond the range of float16")
    assert not (tmp_path / "new").exists()


def test_a_trained_export_goes_through_torch_and_back(tmp_path, capsys):
    pytest.importorskip("torch")
    file_of(tmp_path / "official.safetensors", SDXL)
    made, bare = tmp_path / "made", tmp_path / "bare"
    assert run(capsys, made, "--output", bare, "--format", "torch")[0] == 0
    assert_equal(read_adapter(bare / "pytorch_model.bin"), read_adapter(made))
    adapter = load_adapter(bare / "pytorch_model.bin")
    np.testing.assert_array_equal(adapter.fc.kernel[...], adapter_of(SDXL).fc.kernel[...])


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--output", "OUT"], 2, "expected FILE"),
        (["FILE", "OTHER", "--output", "OUT"], 2, "unexpected 'OTHER'"),
        (["FILE"], 2, "expected --output"),
        (["FILE", "--output", "OUT", "--dtpe", "x"], 2, "no flag --dtpe; did you mean --dtype?"),
        (["FILE", "--output", "OUT", "--config.seed=1"], 2, "unexpected '--config.seed=1'"),
        (["NONE", "--output", "OUT"], 1, "NONE: no such folder or file of an adapter"),
        (["WRONG", "--output", "OUT"], 1, "WRONG: expected the tensors of an adapter (layernorm, "),
        (["BROKEN", "--output", "OUT"], 1, "BROKEN (6 bytes): not a whole safetensors file"),
        (["FILE", "--output", "USED"], 1, "USED is there already: expected a new or an empty"),
        (
            ["FILE", "--output", "OUT", "--dtype=int8", "--format=onnx"],
            1,
            "--format: expected one of safetensors, torch, got 'onnx'; --dtype: expected one of "
            "float32, float16, bfloat16, got 'int8'",
        ),
        (
            ["FILE", "--output", "OUT", "--format=torch", "--base=x"],
            1,
            "--format torch writes pytorch_model.bin alone, and no config.json to put names in",
        ),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(
    tmp_path, capsys, arguments, status, message
):
    file_of(tmp_path / "FILE", SDXL)
    save_file({"conv_in.weight": np.zeros((4, 4, 3, 3), np.float32)}, tmp_path / "WRONG")
    (tmp_path / "BROKEN").write_bytes(b"broken")
    (tmp_path / "USED").mkdir()
    (tmp_path / "USED" / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    places = {name: f"{tmp_path}/{name}" for name in ("FILE", "OTHER", "NONE", "WRONG", "BROKEN")}
    places |= {name: f"{tmp_path}/{name}" for name in ("OUT", "USED")}
    got, out, err = run(capsys, *(places.get(word, word) for word in arguments))
    assert (got, out, len(err)) == (status, [], 1)
    line = err[0].replace(f"{tmp_path}/", "")
    assert line.startswith(f"pea-jax convert: {message}")
    assert sorted(tmp_path.rglob("*")) == before


def test_without_torch_a_line_says_what_to_install(tmp_path, capsys, monkeypatch):
    file_of(tmp_path / "FILE", SDXL)
    monkeypatch.setitem(__import__("sys").modules, "torch", None)  # its import fails
    status, _, err = run(
        capsys, tmp_path / "FILE", "--output", tmp_path / "out", "--format", "torch"
    )
    assert (status, len(err)) == (1, 1)
    assert re.search(r"takes PyTorch to write: pip install torch", err[0])
    assert not (tmp_path / "out").exists()
