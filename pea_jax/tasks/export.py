"""`pea-jax export`: a trained adapter as files that others read.

    OUTPUT/adapter.safetensors, config.json   the adapter, in the authors' key layout
    OUTPUT/diffusers/                         a whole model that PyTorch diffusers loads

The folder appears whole or not at all (in a bucket, where it is copied to, unless a kill cuts that
off). Weights of the base are copied, not linked, and those of the
language encoder are written again under transformers' names: `save_pretrained` into the export, or
an edit of it, must not reach the models it came from.
"""

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from pea_jax.assembly import model_factory
from pea_jax.diffusion.schedule import Schedule
from pea_jax.models.adapter import Adapter
from pea_jax.runtime import storage
from pea_jax.runtime.storage import AnyPath
from pea_jax.weights.adapters import WEIGHTS_FILE, check_fit, save_adapter
from pea_jax.weights.bases import BaseConfig, read_base_config
from pea_jax.weights.encoder_folder import write_encoders
from pea_jax.weights.language import LanguageConfig, read_language_config
from pea_jax.weights.locate import SHIPPED, fetch_weights, read_json, resolve
from pea_jax.weights.save import refuse_used

TEMPLATES = Path(__file__).parent.parent / "templates"

_LANGUAGES = {
    "zh": "Chinese",
    "ja": "Japanese",
    "ko": "Korean",
    "ru": "Russian",
    "it": "Italian",
}

#: What the folder's model_index.json and its code call the adapter.
_ADAPTER_ENTRY = ["pea_adapter", "PEAAdapter"]
#: One name for every family: diffusers keeps the code of all folders in one module, and finds the
#: class as the only one in it.
_PIPELINE_ENTRY = ["pipeline", "PEAPipeline"]


@dataclasses.dataclass(frozen=True)
class _Family:
    """What the folder of a family has of its own.

    Attributes:
      template: of the pipeline's code.
      parent: the class of diffusers that it is made from.
      encoded: what its `encode_prompt` gives.
      index: entries of model_index.json.
    """

    template: str
    parent: str
    encoded: tuple[str, ...]
    index: Mapping[str, Any]


_SD = _Family(
    "pipeline.py",
    "StableDiffusionPipeline",
    ("prompt_embeds", "negative_prompt_embeds"),
    {
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
    },
)
_SDXL = _Family(
    "pipeline_xl.py",
    "StableDiffusionXLPipeline",
    (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    ),
    {"feature_extractor": [None, None], "image_encoder": [None, None]},
)

_DIFFUSERS_WEIGHTS = "diffusion_pytorch_model"

#: Solvers of ours as schedulers of diffusers: class, default spacing, and what it must be told.
_SCHEDULERS = {
    "ddim": ("DDIMScheduler", "leading", ("set_alpha_to_one",), {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", "linspace", ("final_sigmas_type",), {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", "linspace", (), {}),
    "dpmpp_2m": (
        "DPMSolverMultistepScheduler",
        "linspace",
        ("final_sigmas_type", "lower_order_final", "euler_at_final"),
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"},
    ),
}


def export(
    config: ConfigDict, workdir: AnyPath, *, output: AnyPath | None = None, step: int | None = None
) -> AnyPath:
    """Writes a run's adapter, and a folder for diffusers, to `output`.

    Args:
      config: of the run.
      workdir: of the run.
      output: a folder that isn't there yet, or is empty; None is workdir/export.
      step: of the checkpoint; None takes the latest.

    Raises:
      ValueError: a folder that holds something already, or parts that don't fit each other.
      FileNotFoundError: the workdir has no checkpoint of this step.
    """
    output = workdir / "export" if output is None else output
    refuse_used(output)
    adapter, step = model_factory.load_trained_adapter(workdir, step=step)
    base = read_base_config(config.model.base)
    language = read_language_config(config.model.language_encoder)
    check_fit(
        adapter.config,
        language_width=language.width,
        cross_attention_dim=base.unet.cross_attention_dim,
        pooled_width=base.unet.pooled_width,
    )
    if len(language.parts) > 2:
        raise ValueError(
            f"{config.model.language_encoder}: expected at most 2 encoders, which the folder has "
            f"places for, got {len(language.parts)}"
        )
    with storage.appearing(output) as folder:
        save_adapter(folder, adapter, metadata=_metadata(config, step))
        write_diffusers(folder / "diffusers", config, base, language, adapter, folder)
        source = resolve(config.model.base, patterns=["README.md"])
        card = model_card(config, adapter, source, workdir, step)
        (folder / "diffusers" / "README.md").write_text(card, "utf-8")
    print(f"{output}: {WEIGHTS_FILE} with its config.json, and diffusers/ for PyTorch diffusers")
    return output


def write_diffusers(
    folder: Path,
    config: ConfigDict,
    base: BaseConfig,
    language: LanguageConfig,
    adapter: Adapter,
    exported: Path,
) -> None:
    """A folder of a custom diffusers pipeline: all that it takes to turn prompts into images.

    Args:
      folder: made here.
      config: of the run.
      base: of the base model; its files are copied.
      language: of the language encoder; its files are copied.
      adapter: whose weights lie in `exported`.
      exported: the folder of adapter.safetensors.
    """
    half = config.model.dtype == "bfloat16"
    weights = fetch_weights(config.model.base, base.stems, half=half)
    for part, stem in base.stems.items():
        _copy([base.folder / part / "config.json"], folder / part)
        _copy_weights(weights[part], folder / part, stem)
    for part in base.tokenizers:
        _copy(sorted((base.folder / part).glob("*.*")), folder / part)
    schedule = Schedule.from_dict(base.schedule)
    scheduler = scheduler_config(config.sample.solver, schedule)
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)

    encoders, cleans = write_encoders(folder, language, config.model.language_max_length)
    family = _family(adapter)
    architecture = {"_class_name": _ADAPTER_ENTRY[1], **dataclasses.asdict(adapter.config)}
    _write_json(folder / "adapter" / "config.json", {**architecture, "clean_text": cleans})
    shutil.copyfile(
        exported / WEIGHTS_FILE, folder / "adapter" / f"{_DIFFUSERS_WEIGHTS}.safetensors"
    )
    shutil.copyfile(TEMPLATES / "pea_adapter.py", folder / "adapter" / "pea_adapter.py")
    shutil.copyfile(TEMPLATES / family.template, folder / "pipeline.py")
    index = read_json(base.folder / "model_index.json")
    index = {
        "_class_name": _PIPELINE_ENTRY,
        **{name: index[name] for name in (*base.stems, *base.tokenizers)},
        **family.index,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        **encoders,
        "adapter": _ADAPTER_ENTRY,
    }
    if family is _SDXL:
        index["force_zeros_for_empty_prompt"] = base.zero_empty_prompt
    _write_json(folder / "model_index.json", index)


def _family(adapter: Adapter) -> _Family:
    return _SD if adapter.config.pooled_width is None else _SDXL


def scheduler_config(solver: str, schedule: Schedule) -> dict[str, Any]:
    """The scheduler_config.json of the diffusers scheduler that takes the steps of our solver.

    Every choice is written out: diffusers fills what is left out by the class, not by the model.

    Args:
      solver: a key of `diffusion.solvers.SOLVERS`.
      schedule: of the base model.
    """
    name, spacing, fields, options = _SCHEDULERS[solver]
    shared = (
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "prediction_type",
        "steps_offset",
    )
    return {
        "_class_name": name,
        **{field: getattr(schedule, field) for field in (*shared, *fields)},
        "timestep_spacing": schedule.timestep_spacing or spacing,
        **options,
    }


def model_card(
    config: ConfigDict, adapter: Adapter, base: Path, workdir: AnyPath, step: int
) -> str:
    """The README.md of the diffusers folder.

    Args:
      config: of the run.
      adapter: the trained one.
      base: the folder of the base model, whose README.md may name a license.
      workdir: of the run, whose eval.json, if it is there, holds the scores.
      step: of the adapter.
    """
    license_name = _license(base / "README.md")
    names = [_LANGUAGES.get(code, code) for code in config.data.languages]
    languages = ", ".join([*names[:-2], " and ".join(names[-2:])])
    prompts = [prompt for prompt in config.train.sample_prompts if prompt] or [""]
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(adapter)))
    return Template((TEMPLATES / "model_card.md").read_text("utf-8")).substitute(
        front_matter=_front_matter(config.model.base, config.data.languages, license_name),
        title=f"{Path(config.model.base).name} in {languages}",
        languages=languages,
        base=config.model.base,
        language_encoder=config.model.language_encoder,
        parameters=f"{parameters:,}",
        prompt=json.dumps(prompts[0], ensure_ascii=False),
        pipeline=_family(adapter).parent,
        encoded=", ".join(_family(adapter).encoded),
        guidance_scale=config.sample.guidance_scale,
        steps=config.sample.steps,
        steps_trained=f"{step:,}",
        results=_results(workdir / "eval.json"),
        config=json.dumps(config.to_dict(), indent=2, ensure_ascii=False),
    )


def _metadata(config: ConfigDict, step: int) -> dict[str, Any]:
    """What whoever loads the adapter has to know of where it fits."""
    return {
        "base_model": config.model.base,
        "language_encoder": config.model.language_encoder,
        "language_max_length": config.model.language_max_length,
        "languages": list(config.data.languages),
        "step": step,
    }


def _copy(files: Sequence[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, folder / file.name)


def _copy_weights(files: Sequence[Path], folder: Path, stem: str) -> None:
    """One file under its full-precision name; shards under their own, with an index.

    A torch pickle, where the base model has nothing else, keeps its own name.
    """
    if len(files) == 1:
        pickled = files[0].suffix != ".safetensors"
        shutil.copyfile(files[0], folder / (files[0].name if pickled else f"{stem}.safetensors"))
        return
    _copy(files, folder)
    names = {file.name for file in files}
    for index in sorted(files[0].parent.glob(f"{stem}*.index*.json")):
        if set(read_json(index)["weight_map"].values()) == names:
            shutil.copyfile(index, folder / f"{stem}.safetensors.index.json")
            return
    raise ValueError(f"{files[0].parent}: expected an index of {sorted(names)}")


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _front_matter(base: str, languages: Sequence[str], license_name: str | None) -> str:
    """The card's metadata on the Hub; https://huggingface.co/docs/hub/model-cards."""
    lines = [f"license: {license_name or 'other'}"]
    if license_name is None:
        lines.append("license_name: of-the-base-model-and-the-language-encoder")
    on_the_hub = base not in SHIPPED and re.fullmatch(r"[\w.-]+/[\w.-]+", base)
    if on_the_hub and not Path(base).expanduser().exists():
        lines.append(f"base_model: {base}")
    lines += ["language:", *(f"- {language}" for language in languages), "library_name: diffusers"]
    lines += ["pipeline_tag: text-to-image", "tags:"]
    lines += [f"- {tag}" for tag in ("stable-diffusion", "pea-diffusion", "adapter")]
    return "".join(f"{line}\n" for line in lines)


def _license(readme: Path) -> str | None:
    """The license in the front matter of a model card; None where there is none."""
    text = readme.read_text("utf-8") if readme.is_file() else ""
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license:\s*(\S+)\s*$", front[1], re.MULTILINE) if front else None
    return found[1] if found else None


def _results(file: AnyPath) -> str:
    """The scores of eval.json as a table; what `evaluate` wrote there says what they mean."""
    if not file.is_file():
        return "Not evaluated yet."
    scores = json.loads(file.read_text("utf-8"))
    rows = [
        (name, f"{model} {language}", shares)
        for name in scores["counts"]
        for language, models in scores[name].items()
        for model, shares in models.items()
    ]
    attributes = list(rows[0][-1])
    lines = [["prompts", "model", *attributes], ["---"] * (2 + len(attributes))]
    for *said, shares in rows:
        lines.append([*said, *(f"{shares[attribute]:.2f}" for attribute in attributes)])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{scores['about']}\n\n{table}"
