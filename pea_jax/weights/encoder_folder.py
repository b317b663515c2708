"""A language encoder, whatever its authors' layout, as folders that transformers loads."""

import json
from pathlib import Path

from pea_jax.weights.encoder_files import EncoderFiles
from pea_jax.weights.language import LanguageConfig, load_tower, read_tokenizers
from pea_jax.weights.save import save_module


def write_encoders(
    folder: Path, language: LanguageConfig, max_length: int
) -> tuple[dict[str, list[str]], bool]:
    """Writes language_encoder/ and language_tokenizer/, then language_encoder_2/, and so on.

    Args:
      folder: of a diffusers model.
      language: one encoder or several.
      max_length: of the prompts, as for `read_tokenizers`.

    Returns:
      The entries of model_index.json, and whether texts are cleaned before they are tokenized.

    Raises:
      ValueError: as `export_problems` lists.
    """
    entries = {}
    tokenizers = read_tokenizers(language, max_length)
    for index, (part, tokenizer) in enumerate(zip(language.parts, tokenizers, strict=True), 1):
        suffix = "" if index == 1 else f"_{index}"
        encoder, own = f"language_encoder{suffix}", f"language_tokenizer{suffix}"
        entries[encoder] = ["transformers", write_encoder(part, folder / encoder)]
        entries[own] = ["transformers", tokenizer.save(folder / own)]
    return entries, any(tokenizer.clean is not None for tokenizer in tokenizers)


def write_encoder(part: EncoderFiles, folder: Path) -> str:
    """Writes config.json and model.safetensors of a text tower, under transformers' names.

    Args:
      part: of `read_language_config`.
      folder: must not exist. The weights are written in float32, which holds any file's values.

    Returns:
      The transformers class that loads the folder.
    """
    name, config = part.config.to_transformers()
    folder.mkdir(parents=True)
    save_module(load_tower(part), folder / "model.safetensors", renamed=part.kind.exported)
    text = json.dumps({"architectures": [name], **config}, indent=2)
    (folder / "config.json").write_text(text + "\n", "utf-8")
    return name
