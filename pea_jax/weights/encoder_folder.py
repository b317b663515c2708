"""A language encoder, whatever its authors' layout, as a folder that transformers loads."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors.numpy import save

from pea_jax.models.text.altclip import AltCLIPTextConfig
from pea_jax.models.text.bert import BertConfig
from pea_jax.models.text.clip import CLIPTextConfig
from pea_jax.models.text.t5 import T5Config
from pea_jax.runtime.storage import replace_bytes
from pea_jax.weights.encoders import Published, TowerConfig
from pea_jax.weights.language import load_tower
from pea_jax.weights.save import tensors_of

_BERTS = {"bert": "BertModel", "roberta": "RobertaModel", "xlm-roberta": "XLMRobertaModel"}


def write_encoder(part: Published, folder: Path) -> str:
    """Writes config.json and model.safetensors of a text tower, under transformers' names.

    Args:
      part: of `read_language_config`.
      folder: new. The weights are float32, which holds what any file held.

    Returns:
      The class of transformers that loads the folder.
    """
    name, config = transformers_config(part.tower)
    tensors = tensors_of(load_tower(part))
    if isinstance(part.tower, AltCLIPTextConfig):
        # The class alone, without the image side, has keys of its own in transformers 5.
        tensors = {
            key.removeprefix("text_model.").replace(".encoder.layer.", ".encoder.layers."): tensor
            for key, tensor in tensors.items()
        }
    folder.mkdir(parents=True)
    replace_bytes(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    text = json.dumps({"architectures": [name], **config}, indent=2)
    (folder / "config.json").write_text(text + "\n", "utf-8")
    return name


def transformers_config(tower: TowerConfig) -> tuple[str, dict[str, Any]]:
    """The class of transformers that is this tower, and its config.json."""
    values = dataclasses.asdict(tower)
    match tower:
        case BertConfig():
            return _BERTS[tower.model_type], {**values, "hidden_act": "gelu"}
        case CLIPTextConfig():
            return "CLIPTextModel", {"model_type": "clip_text_model", **values}
        case AltCLIPTextConfig():
            roberta = values.pop("roberta")
            return "AltCLIPTextModel", {**roberta, **values, "model_type": "altclip_text_model"}
        case T5Config():
            return "T5EncoderModel", {"model_type": "t5", **values}
