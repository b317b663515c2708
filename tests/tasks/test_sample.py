import json
import logging

import numpy as np
import pytest
from PIL import Image

from pea_jax.assembly import model_factory
from pea_jax.tasks import sample
from tests import tiny, vivid

LONG = "红" * 60


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return vivid.write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def config(models, tmp_path):
    return tiny.config(models, tmp_path / "data", sample__seed=5)


@pytest.fixture
def trained(monkeypatch):
    """A workdir whose latest checkpoint, of step 7, holds a certain adapter."""
    adapter = vivid.make_adapter()
    monkeypatch.setattr(
        model_factory, "load_trained_adapter", lambda workdir, step=None: (adapter, step or 7)
    )
    return adapter


def pixels(file):
    with Image.open(file) as picture:
        return np.asarray(picture)


def files(folder):
    return sorted(file.name for file in folder.iterdir())


def test_a_file_and_a_manifest_line_for_every_prompt(config, trained, tmp_path, caplog, capsys):
    prompts = ["红色的大圆形", LONG, "กขค"]
    output = tmp_path / "new" / "images"
    with caplog.at_level(logging.WARNING):
        sample.sample(config, tmp_path / "run", prompts=prompts, output=output)

    names = ["00000.png", "00001.png", "00002.png"]
    assert files(output) == [*names, "grid.png", "manifest.jsonl"]
    lines = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == names
    assert [line["prompt"] for line in lines] == prompts
    assert [line["seed"] for line in lines] == [5, 6, 7]
    assert lines[0]["settings"]["steps"] == 2
    assert lines[0]["settings"]["solver"] == "dpmpp_2m"
    assert lines[0]["settings"]["step"] == 7
    # What does not fit is recorded in the manifest and logged.
    lost = LONG[tiny.NATIVE_TOKENS - 3 :]  # beginning, end and "▁" take a token each
    assert [line["cut"] for line in lines] == ["", lost, ""]
    assert f"does not see {lost!r}" in caplog.text
    assert str(output) in capsys.readouterr().out

    # The images are the pipeline's, in the order of the prompts.
    settings = model_factory.sample_settings(config)
    pipeline = model_factory.load_pipeline(config, trained)
    expected = np.concatenate(list(pipeline.batches(prompts, settings, seed=5)))
    for name, image in zip(names, expected, strict=True):
        assert np.array_equal(pixels(output / name), image)

    before = (output / "manifest.jsonl").read_bytes()
    with pytest.raises(ValueError, match="is there already: expected a new or an empty folder"):
        sample.sample(config, tmp_path / "run", prompts=["圆"], output=output)
    assert (output / "manifest.jsonl").read_bytes() == before


def test_without_a_run_the_english_model_is_sampled(config, tmp_path):
    config.sample.guidance_scale = 1.0
    sample.sample(config, None, prompts=["a red circle"], output=tmp_path / "out")
    (line,) = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    assert "workdir" not in json.loads(line)["settings"]
    english = model_factory.load_pipeline(config, None)
    assert english.adapter is None
    image = english(["a red circle"], seed=5, steps=2, guidance_scale=1.0)[0]
    assert np.array_equal(pixels(tmp_path / "out" / "00000.png"), image)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample.height": 15}, "height: expected a multiple of 2.*nearest: 14 and 16"),
        ({"sample.solver": "heun"}, "unknown solver 'heun'"),
        ({"sample.steps": 2000}, "steps is 2000"),
        ({"model.dtype": "int8"}, "got 'int8'"),
    ],
)
def test_nothing_is_written_where_settings_cannot_be(config, trained, tmp_path, changes, message):
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        sample.sample(config, tmp_path, prompts=["圆"], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_prompts(config, tmp_path):
    with pytest.raises(ValueError, match="one or more prompts"):
        sample.sample(config, None, prompts=[], output=tmp_path / "out")


def test_prompts_of_a_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeff红色的圆\n\n   \r\n  大 圆 \n".encode())
    assert sample.read_prompts(file) == ["红色的圆", "大 圆"]

    file.write_text("\n  \n")
    with pytest.raises(ValueError, match="expected one prompt a line, found none"):
        sample.read_prompts(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="expected text in UTF-8"):
        sample.read_prompts(file)
    with pytest.raises(FileNotFoundError):
        sample.read_prompts(tmp_path / "none.txt")


def test_sizes_and_batch_size_of_zero_are_defaults(config):
    config.sample.batch_size = 0
    settings = model_factory.sample_settings(config)
    assert (settings.height, settings.width, settings.batch_size) == (16, 16, None)
    config.sample.width = 32
    assert model_factory.sample_settings(config).width == 32
