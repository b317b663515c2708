"""A Stable Diffusion and an XLM-R of a few thousand random parameters, and a config that trains
an adapter between them on tinyworld scenes of 16x16 pixels: the whole way, in seconds.
"""

import dataclasses
import functools
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flax import nnx
from ml_collections import ConfigDict
from PIL import Image

from pea_jax.cli import config as configs
from pea_jax.data.schema import Row
from pea_jax.data.write import builder
from pea_jax.models.text.bert import Bert, BertConfig
from pea_jax.models.text.clip import CLIPText, CLIPTextConfig
from pea_jax.models.unet.unet import UNet, UNetConfig
from pea_jax.models.vae import VAE, VAEConfig
from pea_jax.runtime import metrics
from pea_jax.runtime.storage import AnyPath
from pea_jax.tinyworld import dataset
from pea_jax.weights.save import save_module
from tests.models.random_module import random_module
from tests.weights import conftest as small

ENGLISH_TOKENS, NATIVE_TOKENS = 64, 40

CLIP = {**small.CLIP, "max_position_embeddings": ENGLISH_TOKENS}
XLMR = {**small.XLMR, "max_position_embeddings": NATIVE_TOKENS + 2}

_LANGUAGE = (Bert, BertConfig, XLMR)
_NETWORKS = {
    "unet": (UNet, UNetConfig, small.UNET),
    "vae": (VAE, VAEConfig, small.VAE_SIZES),
    "text_encoder": (CLIPText, CLIPTextConfig, CLIP),
}
_NETWORKS_XL = {
    **_NETWORKS,
    "unet": (UNet, UNetConfig, small.UNET_XL),
    "text_encoder_2": (
        functools.partial(CLIPText, projected=True),
        CLIPTextConfig,
        {**small.CLIP_2, "max_position_embeddings": ENGLISH_TOKENS},
    ),
}


def _write_network(folder: Path, name: str, network: tuple) -> None:
    build, config, values = network
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values))
    stem = "diffusion_pytorch_model" if name in ("unet", "vae") else "model"
    module = random_module(lambda: build(config.from_dict(values), rngs=nnx.Rngs(0)))
    save_module(module, folder / f"{stem}.safetensors")


def write_base(folder: Path, *, xl: bool = False) -> Path:
    """A Stable Diffusion, or SDXL, in diffusers format: 16x16 pixels, 8x8 latents."""
    for name, network in (_NETWORKS_XL if xl else _NETWORKS).items():
        _write_network(folder / name, name, network)
    index = small.MODEL_INDEX_XL if xl else small.MODEL_INDEX
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(
        json.dumps(
            {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "steps_offset": 1}
        )
    )
    small.english_tokenizer(ENGLISH_TOKENS).save_pretrained(folder / "tokenizer")
    if xl:  # whose second tokenizer pads with another token
        second = small.english_tokenizer(ENGLISH_TOKENS, pad_token="a")
        second.save_pretrained(folder / "tokenizer_2")
    return folder


def write_language_encoder(folder: Path) -> Path:
    """An XLM-R in transformers format, with one token a character."""
    _write_network(folder, "language", _LANGUAGE)
    small.native_tokenizer(NATIVE_TOKENS).save_pretrained(folder)
    return folder


def write_models(folder: Path, *, xl: bool = False) -> Path:
    """Both, under `folder`/sd and `folder`/xlm-roberta."""
    write_base(folder / "sd", xl=xl)
    write_language_encoder(folder / "xlm-roberta")
    return folder


def write_data(data_dir: AnyPath, name: str = "few", sizes: Sequence[tuple] = ()) -> AnyPath:
    """A data set of 48 tinyworld scenes with Chinese captions, 32 parallel and 16 native.

    Args:
      data_dir: holds it.
      name: its name.
      sizes: heights and widths that the scenes are cut to, one after another; all 64 by default.
    """
    splits = {
        "train": [
            functools.partial(_some, sizes, native=False, count=32),
            functools.partial(_some, sizes, native=True, count=16),
        ]
    }
    builder.build(data_dir, name, splits)
    return data_dir


def _some(sizes: Sequence[tuple], *, native: bool, count: int) -> Iterator[Row]:
    # Scattered over the split, whose neighbours look alike.
    scattered = itertools.islice(dataset.rows("train", native, ("zh",)), 0, 97 * count, 97)
    if not sizes:
        yield from scattered
    for row, (height, width) in zip(scattered, itertools.cycle(sizes), strict=False):
        file = io.BytesIO()
        Image.open(io.BytesIO(row.image)).crop((0, 0, width, height)).save(file, "PNG")
        yield dataclasses.replace(row, image=file.getvalue(), height=height, width=width)


def config(models: Path, data_dir: Path, **changes: object) -> ConfigDict:
    """A run of a few steps on the folders of `write_models` and `write_data`; keywords such as
    `train__steps=3` change fields.
    """
    result = configs.load(Path(__file__).parents[1] / "configs" / "tiny_zh.py")
    fields = {
        "model.base": str(models / "sd"),
        "model.language_encoder": str(models / "xlm-roberta"),
        "model.language_max_length": NATIVE_TOKENS,
        "adapter.hidden_width": 8,
        "data.dataset": "few",
        "data.data_dir": str(data_dir),
        "data.image_size": 16,
        "data.batch_size": 16,
        "data.native_batch_size": 8,
        "optim.warmup_steps": 0,
        "train.steps": 4,
        "train.log_every": 1,
        "train.save_every": 2,
        "train.sample_every": 0,
        "train.compilation_cache": "",
        "sample.steps": 2,
    }
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    result.update_from_flattened_dict(fields)
    return result


def lines(workdir: AnyPath) -> list[dict[str, Any]]:
    """What metrics.jsonl holds of the computation, and not of the sitting that wrote it."""
    of_sitting = {"step_seconds", "data_wait", "compilations", "compile_seconds"}
    of_sitting |= {"images_per_second", "images_per_second_per_chip"}
    return [
        {name: value for name, value in line.items() if name not in of_sitting}
        for line in metrics.read_metrics(workdir)
    ]
