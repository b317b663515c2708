import ast
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from pea_jax.assembly import model_factory
from pea_jax.diffusion import solvers
from pea_jax.diffusion.schedule import Schedule
from pea_jax.diffusion.solvers import SOLVERS
from pea_jax.tasks import export
from pea_jax.weights.adapters import load_adapter
from pea_jax.weights.bases import read_base_config
from tests import tiny, vivid


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return vivid.write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def config(models, tmp_path):
    return tiny.config(models, tmp_path / "data", model__language_max_length=21)


@pytest.fixture(autouse=True)
def trained(monkeypatch):
    """A workdir whose latest checkpoint, of step 7, holds a certain adapter."""
    adapter = vivid.make_adapter()
    monkeypatch.setattr(
        model_factory, "load_trained_adapter", lambda workdir, step=None: (adapter, step or 7)
    )
    return adapter


def read(file):
    return json.loads(file.read_text("utf-8"))


def test_adapter_file_has_the_official_keys_and_reads_back(config, trained, tmp_path):
    output = export.export(config, tmp_path, output=tmp_path / "new" / "out")
    tensors = load_file(output / "adapter.safetensors")
    assert {name: value.shape for name, value in tensors.items()} == {
        "layernorm.weight": (24,),
        "layernorm.bias": (24,),
        "projector.0.weight": (32, 24),
        "projector.2.weight": (32, 32),
        "projector.4.weight": (16, 32),
    }
    again = load_adapter(output)
    for first, second in zip(
        jax.tree.leaves(nnx.state(trained)), jax.tree.leaves(nnx.state(again)), strict=True
    ):
        assert np.array_equal(first, second)
    metadata = read(output / "config.json")
    assert metadata["base_model"] == config.model.base
    assert metadata["language_encoder"] == config.model.language_encoder
    assert metadata["language_max_length"] == 21
    assert metadata["step"] == 7


def test_diffusers_folder_is_whole_and_its_own(config, models, tmp_path):
    folder = export.export(config, tmp_path, output=tmp_path / "out") / "diffusers"
    index = read(folder / "model_index.json")
    assert index["_class_name"] == ["pipeline", "PEAPipeline"]
    assert index["adapter"] == ["pea_adapter", "PEAAdapter"]
    assert index["language_encoder"] == ["transformers", "XLMRobertaModel"]
    assert index["scheduler"] == ["diffusers", "DPMSolverMultistepScheduler"]
    for name, entry in index.items():
        if isinstance(entry, list) and entry[0] is not None and name != "_class_name":
            assert (folder / name).is_dir(), name

    copies = {
        "unet/diffusion_pytorch_model.safetensors": "sd/unet/diffusion_pytorch_model.safetensors",
        "vae/config.json": "sd/vae/config.json",
        "text_encoder/model.safetensors": "sd/text_encoder/model.safetensors",
        "adapter/diffusion_pytorch_model.safetensors": "../out/adapter.safetensors",
    }
    for copy, source in copies.items():
        source = (tmp_path / "x" / source) if source.startswith("..") else models / source
        assert (folder / copy).read_bytes() == source.resolve().read_bytes()
        # What is done to the copy must not reach the original.
        assert not (folder / copy).samefile(source.resolve())
    written = load_file(folder / "language_encoder" / "model.safetensors")
    for name, value in load_file(models / "xlm-roberta" / "model.safetensors").items():
        assert np.array_equal(written.pop(name), value), name
    assert not written
    # The adapter was trained at this length, whatever the tokenizer says of itself.
    assert read(folder / "language_tokenizer" / "tokenizer_config.json")["model_max_length"] == 21
    # The code defines the classes that the index names.
    for file, name in (
        ("pipeline.py", index["_class_name"][1]),
        ("adapter/pea_adapter.py", "PEAAdapter"),
    ):
        tree = ast.parse((folder / file).read_text("utf-8"))
        assert name in [node.name for node in tree.body if isinstance(node, ast.ClassDef)]


def test_what_diffusers_cannot_have_is_said_and_the_adapter_is_written(
    config, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(export, "export_problems", lambda language: ["The tokenizer is odd."])
    output = export.export(config, tmp_path, output=tmp_path / "out")
    assert sorted(file.name for file in output.iterdir()) == ["adapter.safetensors", "config.json"]
    assert "no diffusers/ for PyTorch: The tokenizer is odd." in capsys.readouterr().out


def test_nothing_is_left_behind_by_an_error_nor_written_over(config, tmp_path, monkeypatch):
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(export, "model_card", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export.export(config, tmp_path, output=output)
    assert [entry.name for entry in tmp_path.iterdir()] == []

    output.mkdir()
    export.export(config, tmp_path, output=output)
    with pytest.raises(ValueError, match="is there already: expected a new or an empty folder"):
        export.export(config, tmp_path, output=output)
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match="is there already"):
        export.export(config, tmp_path, output=file)
    assert file.read_text() == "mine"


def test_adapter_of_another_base_is_refused(config, tmp_path, monkeypatch):
    other = vivid.make_adapter(output_width=12)
    monkeypatch.setattr(
        model_factory, "load_trained_adapter", lambda workdir, step=None: (other, 1)
    )
    with pytest.raises(ValueError, match=r"output_width: expected 16 .*, got 12"):
        export.export(config, tmp_path, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("solver", SOLVERS)
def test_scheduler_is_written_out(solver):
    schedule = Schedule.from_dict(
        {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction", "steps_offset": 1}
    )
    written = solvers.scheduler_config(solver, schedule)
    # What it says reads back as the same schedule, but for the spacing that the solver settled.
    again = Schedule.from_dict(written)
    assert again.timestep_spacing == ("leading" if solver == "ddim" else "linspace")
    for field in ("beta_start", "beta_end", "beta_schedule", "prediction_type", "steps_offset"):
        assert getattr(again, field) == getattr(schedule, field)

    spaced = Schedule.from_dict({"timestep_spacing": "trailing", "set_alpha_to_one": False})
    assert solvers.scheduler_config(solver, spaced)["timestep_spacing"] == "trailing"
    assert Schedule.from_dict(solvers.scheduler_config("ddim", spaced)) == spaced


def test_half_precision_and_sharded_files_are_found_by_their_plain_names(config, models, tmp_path):
    base = tmp_path / "sd"
    shutil.copytree(models / "sd", base)
    unet = base / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(unet)
    names = sorted(tensors)
    shards = {
        "diffusion_pytorch_model.fp16-00001-of-00002.safetensors": names[:20],
        "diffusion_pytorch_model.fp16-00002-of-00002.safetensors": names[20:],
    }
    for shard, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, unet.with_name(shard))
    weight_map = {key: shard for shard, keys in shards.items() for key in keys}
    unet.with_name("diffusion_pytorch_model.safetensors.index.fp16.json").write_text(
        json.dumps({"weight_map": weight_map})
    )
    unet.unlink()
    vae = base / "vae" / "diffusion_pytorch_model.safetensors"
    vae.rename(vae.with_name("diffusion_pytorch_model.fp16.safetensors"))

    config.model.base = str(base)
    folder = export.export(config, tmp_path, output=tmp_path / "out") / "diffusers"
    index = read(folder / "unet" / "diffusion_pytorch_model.safetensors.index.json")
    assert index["weight_map"] == weight_map
    assert all((folder / "unet" / shard).is_file() for shard in shards)
    assert (folder / "vae" / "diffusion_pytorch_model.safetensors").is_file()


def test_model_card(config, models, trained, tmp_path):
    config.model.base = "someone/some-diffusion@v1.0"
    config.sample.guidance_scale = 5.5
    config.train.sample_prompts = ("", '红色的"大"圆形')

    sd = read_base_config(models / "sd")
    card = export.model_card(config, trained, sd, tmp_path, 1234)
    assert "license: other\n" in card
    assert "base_model: someone/some-diffusion\n" in card
    assert "# some-diffusion in Chinese\n" in card
    assert "language:\n- zh\n" in card
    assert "**Chinese**" in card
    assert "Not evaluated yet." in card
    assert "1,234 steps" in card
    assert "2,352 parameters" in card
    assert 'pipe("红色的\\"大\\"圆形", num_inference_steps=2, guidance_scale=5.5)' in card
    assert "$" not in card

    shares = {"all": 0.5, "shape": 0.875}
    scores = {
        "general": {"en": {"teacher": shares}},
        "native": {"zh": {"student": shares}, "ru": {"student": shares}},
        "counts": {"general": 64, "native": 48},
        "about": "What it means.",
    }
    (tmp_path / "eval.json").write_text(json.dumps(scores))
    config.data.languages = ("zh", "ja", "ru")
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: creativeml-openrail-m\ntags: []\n---\n# SD\n")
    config.model.base = "tinyworld/sd"
    other = dataclasses.replace(sd, folder=base)
    card = export.model_card(config, trained, other, tmp_path, 1)
    assert "license: creativeml-openrail-m\n" in card
    assert "base_model:" not in card
    assert "What it means." in card
    assert "| prompts | model | all | shape |" in card
    assert "| general | teacher en | 0.50 | 0.88 |" in card
    assert "| native | student ru | 0.50 | 0.88 |" in card
    assert "**Chinese, Japanese and Russian**" in card
    assert "language:\n- zh\n- ja\n- ru\n" in card
