import ast
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from pea_jax.assembly import checks
from pea_jax.assembly.model_factory import model_dtype, sample_settings
from pea_jax.cli import config
from pea_jax.cli.commands import parse
from pea_jax.distill.losses import DistillSettings
from pea_jax.distill.optimizer import make_optimizer
from pea_jax.models.adapter import Adapter, AdapterConfig
from pea_jax.runtime.checkpoint import MAY_CHANGE
from pea_jax.tinyworld import captions, dataset, splits

FOLDER = Path(__file__).parents[1] / "configs"
FILES = sorted(FOLDER.glob("*.py"))
NAMES = [file.stem for file in FILES]
#: What the models give an adapter of theirs: (input, output, pooled) width.
WIDTHS = {
    "sd15_zh": (1024, 768, None),
    "sd21_zh": (1024, 1024, None),
    "sdxl_zh": (1024, 2048, 1280),
    "sdxl_multilingual": (1024, 2048, 1280),
    "ssd1b_zh": (1024, 2048, 1280),
}
#: Configs that make a data set, and the config of the run that it is for.
DATA = {"prepare_laion_wukong": "sdxl_zh"}
PARAMETERS = {
    "sd15_zh": 7_866_368,
    "sd21_zh": 8_390_656,
    "sdxl_zh": 6_033_408,
    "sdxl_multilingual": 11_538_432,
    "ssd1b_zh": 6_033_408,
}
#: Images are sampled larger than the pictures of the training.
SAMPLED = {"sdxl_zh": 1024, "sdxl_multilingual": 1024, "ssd1b_zh": 1024}


def test_there_are_the_configs_that_the_docs_name():
    assert {*NAMES} == {"base", *WIDTHS, *DATA, "tiny_zh", "tiny_multilingual"}


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_a_config_can_be_run(file):
    """Its values are those that the parts of a run take, its fields exactly those of base.py."""
    made = config.load(file)
    base = config.load(FOLDER / "base.py")
    assert list(config.fields(made)) == list(config.fields(base))
    checks.check(made, data_shards=8)
    DistillSettings(**made.distill)
    optimizer = made.optim.to_dict()
    optimizer.pop("ema_decay")
    _, schedule = make_optimizer(**optimizer)
    last = schedule(made.train.steps)
    assert made.optim.end_learning_rate <= last <= made.optim.learning_rate * (1 + 1e-6)
    stem = DATA.get(file.stem, file.stem)
    assert sample_settings(made).height == SAMPLED.get(stem, made.data.image_size)
    # What config.json gives back is the same config, of the same types.
    assert config.from_json(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_a_config_is_a_short_delta_that_says_how_to_run_it(file):
    text = file.read_text("utf-8")
    docstring = ast.get_docstring(ast.parse(text))
    if file.stem != "base":
        assert len(text.splitlines()) < 60
        command = "prepare" if file.stem in DATA else "train"
        assert f"pea-jax {command} --config {file.stem} --work" in docstring
    # The flags and fields of the commands in the docstring exist.
    for words in re.findall(r"^    pea-jax (\w+ .*)$", docstring, re.MULTILINE):
        _, rest = parse(words.split())
        config.override(config.load(file), rest)


@pytest.mark.parametrize("name", ["tiny_zh", "tiny_multilingual"])
def test_sample_prompts_of_tinyworld_are_captions_of_the_languages_that_it_teaches(name):
    made = config.load(FOLDER / f"{name}.py")
    languages = {
        captions.caption(scene, language, template): language
        for native in (False, True)
        for split in ("train", "test")
        for scene in splits.scenes(split, native)
        for language in made.data.languages
        for template in range(len(captions.TEMPLATES[language]))
    }
    asked = [languages.get(prompt) for prompt in made.train.sample_prompts]
    assert set(asked) == set(made.data.languages)


def test_one_adapter_is_taught_all_languages_of_tinyworld():
    made = config.load(FOLDER / "tiny_multilingual.py")
    assert set(made.data.languages) == set(dataset.LANGUAGES)


def test_every_field_of_base_is_commented():
    lines = (FOLDER / "base.py").read_text("utf-8").splitlines()
    bare = []
    for number, line in enumerate(lines):
        if re.match(r"    config(\.\w+)+ = (?!ConfigDict)", line):
            # A comment covers the fields that follow it without a gap.
            above = number - 1
            while re.match(r"    config\.", lines[above]) and "ConfigDict()" not in lines[above]:
                above -= 1
            if not lines[above].lstrip().startswith("#"):
                bare.append(line.split("=")[0].strip())
    assert bare == []


def test_fields_that_may_change_are_fields():
    base = config.load(FOLDER / "base.py")
    fields = list(config.fields(base))
    for name in MAY_CHANGE:
        assert any(field == name or field.startswith(f"{name}.") for field in fields), name
    # The docstring of base.py names the same fields.
    docstring = " ".join((FOLDER / "base.py").read_text("utf-8").split('"""')[1].split())
    groups = [name for name in MAY_CHANGE if "." not in name]
    rest = [name.removeprefix("data.") for name in MAY_CHANGE if "." in name]
    assert f"the groups {', '.join(groups[:-1])} and {groups[-1]}" in docstring
    assert f"data.{{{','.join(rest)}}}" in docstring


@pytest.mark.parametrize("name", PARAMETERS)
def test_full_size_adapters_have_the_published_numbers_of_parameters(name):
    made = config.load(FOLDER / f"{name}.py")
    inputs, outputs, pooled = WIDTHS[name]
    adapter = AdapterConfig(
        input_width=inputs,
        hidden_width=made.adapter.hidden_width,
        output_width=outputs,
        projector_layers=made.adapter.projector_layers,
        pooled_width=pooled,
    )
    state = nnx.state(nnx.eval_shape(lambda: Adapter(adapter, rngs=nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == PARAMETERS[name]
    assert f"{PARAMETERS[name]:,}" in (FOLDER / f"{name}.py").read_text("utf-8")


def test_auto_dtype_goes_by_the_devices():
    assert model_dtype("auto", "cpu") == "float32"
    assert model_dtype("auto", "tpu") == "bfloat16"
    assert jnp.dtype(model_dtype("float32", "tpu")) == jnp.float32
    with pytest.raises(ValueError, match="expected auto, float32 or bfloat16, got 'fp16'"):
        model_dtype("fp16", "cpu")
