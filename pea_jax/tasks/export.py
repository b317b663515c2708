"""`pea-jax export`: a trained adapter as files that others read.

    OUTPUT/adapter.safetensors, config.json   the adapter, in the authors' key layout
    OUTPUT/diffusers/                         a whole model that PyTorch diffusers loads; missing,
                                              with the reason, if an encoder cannot be written so

The folder appears whole or not at all (in a bucket, where it is copied to, a kill can leave a part
of it).
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from pea_jax.assembly import model_factory
from pea_jax.diffusion.schedule import Schedule
from pea_jax.diffusion.solvers import scheduler_config
from pea_jax.models.adapter import Adapter
from pea_jax.runtime import storage
from pea_jax.runtime.storage import AnyPath
from pea_jax.weights.adapters import CONFIG_FILE, WEIGHTS_FILE, check_fit, save_adapter
from pea_jax.weights.bases import BaseConfig, read_base_config
from pea_jax.weights.diffusers_folder import TEMPLATES, write_diffusers
from pea_jax.weights.language import export_problems, read_language_config
from pea_jax.weights.locate import SHIPPED, resolve, split_revision
from pea_jax.weights.save import refuse_used

_LANGUAGES = {
    "zh": "Chinese",
    "ja": "Japanese",
    "ko": "Korean",
    "ru": "Russian",
    "it": "Italian",
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
    spec = model_factory.base_spec(config, jax.local_devices()[0].platform)
    base = read_base_config(spec.name)
    language = read_language_config(config.model.language_encoder)
    check_fit(adapter.config, language.width, base.unet)
    problems = export_problems(language)
    with storage.appearing(output) as folder:
        save_adapter(folder, adapter, metadata=_metadata(config, step))
        if not problems:
            write_diffusers(
                folder / "diffusers",
                spec=spec,
                base=base,
                scheduler=scheduler_config(config.sample.solver, Schedule.from_dict(base.schedule)),
                language=language,
                max_length=config.model.language_max_length,
                adapter=adapter.config,
                adapter_file=folder / WEIGHTS_FILE,
            )
            resolve(spec.name, patterns=["README.md"])
            card = model_card(config, adapter, base, workdir, step)
            (folder / "diffusers" / "README.md").write_text(card, "utf-8")
    print(f"{output}: {WEIGHTS_FILE} with its {CONFIG_FILE}")
    for problem in problems:
        print(f"no diffusers/ for PyTorch: {problem}")
    if not problems:
        print(f"{output / 'diffusers'}: a model for PyTorch diffusers")
    return output


def model_card(
    config: ConfigDict, adapter: Adapter, base: BaseConfig, workdir: AnyPath, step: int
) -> str:
    """The README.md of the diffusers folder.

    Args:
      config: of the run.
      adapter: the trained one.
      base: of the base model, whose README.md may name a license.
      workdir: of the run, whose eval.json, if it is there, holds the scores.
      step: of the adapter.
    """
    license_name = _license(base.folder / "README.md")
    names = [_LANGUAGES.get(code, code) for code in config.data.languages]
    languages = ", ".join([*names[:-2], " and ".join(names[-2:])])
    prompts = [prompt for prompt in config.train.sample_prompts if prompt] or [""]
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(adapter)))
    repository, _ = split_revision(config.model.base)
    return Template((TEMPLATES / "model_card.md").read_text("utf-8")).substitute(
        front_matter=_front_matter(repository, config.data.languages, license_name),
        title=f"{Path(repository).name} in {languages}",
        languages=languages,
        base=config.model.base,
        language_encoder=config.model.language_encoder,
        parameters=f"{parameters:,}",
        prompt=json.dumps(prompts[0], ensure_ascii=False),
        pipeline=base.family.diffusers.name,
        encoded=", ".join(base.family.diffusers.encoded),
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
