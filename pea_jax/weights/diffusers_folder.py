"""A folder that PyTorch diffusers loads: a base model, language encoders and their adapter.

Weights of the base are copied, not linked, and those of the language encoders are written again
under transformers' names: `save_pretrained` into the folder, or an edit of it, must not reach the
models they came from.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pea_jax.families import Family
from pea_jax.models.adapter import AdapterConfig
from pea_jax.weights.bases import BaseConfig, BaseSpec, base_files
from pea_jax.weights.encoder_folder import write_encoders
from pea_jax.weights.language import LanguageConfig
from pea_jax.weights.locate import read_json

TEMPLATES = Path(__file__).parent / "templates"

#: Names of the adapter in model_index.json and in the folder's code.
_ADAPTER_ENTRY = ["pea_adapter", "PEAAdapter"]
#: One name for every family: diffusers keeps the code of all folders in one module, and finds the
#: class as the only one in it.
_PIPELINE_ENTRY = ["pipeline", "PEAPipeline"]

_DIFFUSERS_WEIGHTS = "diffusion_pytorch_model"


def write_diffusers(
    folder: Path,
    *,
    spec: BaseSpec,
    base: BaseConfig,
    scheduler: Mapping[str, Any],
    language: LanguageConfig,
    max_length: int,
    adapter: AdapterConfig,
    adapter_file: Path,
) -> None:
    """Writes everything that turns prompts into images with a custom diffusers pipeline.

    Args:
        folder: made here.
        spec: of the base model; the weight files that `load_base` reads are copied.
        base: the config of that model.
        scheduler: the content of scheduler_config.json.
        language: of the language encoder.
        max_length: tokens of a prompt, as for `load_language_encoder`.
        adapter: shape of the adapter.
        adapter_file: its weights, safetensors.

    Raises:
        ValueError: shards of the base without their index.
    """
    for part, files in base_files(spec, base).items():
        _copy([base.folder / part / "config.json"], folder / part)
        _copy_weights(files, folder / part, base.stems[part])
    for part in base.tokenizers:
        _copy(sorted((base.folder / part).glob("*.*")), folder / part)
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)

    encoders, cleans = write_encoders(folder, language, max_length)
    architecture = {"_class_name": _ADAPTER_ENTRY[1], **dataclasses.asdict(adapter)}
    _write_json(folder / "adapter" / "config.json", {**architecture, "clean_text": cleans})
    shutil.copyfile(adapter_file, folder / "adapter" / f"{_DIFFUSERS_WEIGHTS}.safetensors")
    shutil.copyfile(TEMPLATES / "pea_adapter.py", folder / "adapter" / "pea_adapter.py")
    code = _pipeline_code(base.family, len(language.parts))
    (folder / "pipeline.py").write_text(code, "utf-8")
    index = read_json(base.folder / "model_index.json")
    index = {
        "_class_name": _PIPELINE_ENTRY,
        **{name: index[name] for name in (*base.stems, *base.tokenizers)},
        **base.family.diffusers.index,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        **encoders,
        "adapter": _ADAPTER_ENTRY,
    }
    if base.family.pooled:
        index["force_zeros_for_empty_prompt"] = base.zero_empty_prompt
    _write_json(folder / "model_index.json", index)


def _pipeline_code(family: Family, encoders: int) -> str:
    """The template for the family's pipeline class and the number of language encoders."""
    code = (TEMPLATES / "pea_pipeline.py").read_text("utf-8")
    return code.replace(
        "import StableDiffusionPipeline as", f"import {family.diffusers.name} as"
    ).replace("LANGUAGE_ENCODERS = 1", f"LANGUAGE_ENCODERS = {encoders}")


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


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")
