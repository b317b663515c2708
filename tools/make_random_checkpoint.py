"""Writes random checkpoints in the published formats and sizes, for tests and dry runs.

    python tools/make_random_checkpoint.py sdxl --output /tmp/sdxl [--dtype float16] [--small]

MODEL is one of

    sd15 sd21 sdxl sdxl-turbo sdxl-inpainting ssd1b    folders in diffusers' format
    xlm-roberta-large    model.safetensors with pooler and masked language model head
    mul_clip             open_clip: open_clip_model.safetensors and its config
    chinese_clip         transformers: pytorch_model.bin
    cn_clip              the cn_clip package's own: clip_cn_vit-h-14.pt and vocab.txt
    alt_clip             transformers: pytorch_model.bin
    mt5-xl               pytorch_model.bin: the encoder with its embedding, without the decoder
    adapters             every layout that the authors released or trained, see docs/method.md

Keys, shapes and configs are the published ones (configs from `weights.builtin_configs`, keys from
diffusers and transformers), with three exceptions:

- The image tower of a CLIP has no layers, only the tensors outside them. This is enough to test
  that a loader skips the tower, without its 600 million parameters.
- The decoder of mT5 is missing, for the same reason.
- The tokenizers are substitutes: valid files of the published kinds with the published special ids,
  whose words are characters or pairs of bytes.

Images made with these models are noise.

--small keeps the structure and shrinks every width. Without it, parameter counts are compared with
the published numbers. A safetensors file is written tensor by tensor, so a whole SDXL needs a few
hundred megabytes of memory; a torch pickle is built in memory. Needs torch, diffusers and
transformers, and sentencepiece for mt5-xl.
"""

import argparse
import dataclasses
import json
import math
import re
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from tokenizers import pre_tokenizers
from torch import nn

from pea_jax.weights.builtin_configs import BASES, CONFIGS, read_config

DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
Shapes = dict[str, tuple[int, ...]]
Config = dict[str, Any]

#: Number of random elements that are drawn at once.
CHUNK = 2**24

#: Parameters of the full-size parts. The encoders in published CLIPs have no pooler: they have
#: 1,049,600 parameters fewer than XLM-R large (559,890,432) and BERT large (325,522,432).
COUNTS = {
    "sd15/unet": 859_520_964,
    "sd21/unet": 865_910_724,
    "sdxl/unet": 2_567_463_684,
    "sdxl-turbo/unet": 2_567_463_684,
    # Five more latent channels in the 3x3 input convolution.
    "sdxl-inpainting/unet": 2_567_463_684 + 5 * 9 * 320,
    "vae": 83_653_863,
    "text_encoder": 123_060_480,
    "sd21/text_encoder": 340_387_840,
    "text_encoder_2": 694_659_840,
    "xlm-roberta-large": 559_890_432,
    "mul_clip": 559_890_432 - 1_049_600,
    "chinese_clip": 325_522_432 - 1_049_600,
    "cn_clip": 325_522_432 - 1_049_600,
    "mt5-xl": 1_669_958_656,
    "adapters/sdxl_fc": 4_987_136,
    "adapters/sdxl_pg": 15_732_736,
    "adapters/sdxl_chinese_clip": 6_033_408,
    "adapters/sdxl_mul_clip": 11_538_432,
    "adapters/sdxl_mt5": 13_637_632,
    "adapters/sdxl_alt_clip": 11_013_632,
    "adapters/sd15": 7_866_368,
    "adapters/sd15_five_layers": 33_818_624,
}


@dataclasses.dataclass(frozen=True)
class Weights:
    """One file of weights.

    Attributes:
        file: path relative to the output; its suffix selects the format.
        shapes: key and shape of every tensor.
        name: a key of `COUNTS`, with or without the model's prefix.
        counted: pattern of the keys to count.
        wrap: makes the content of a pickle from the tensors.
        ties: additional keys, and the keys in `shapes` whose tensors they share.
    """

    file: Path
    shapes: Shapes
    name: str
    counted: str = ".*"
    wrap: Callable[[dict[str, torch.Tensor]], object] = dict
    ties: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def count(self) -> int:
        """Number of parameters, without buffers."""
        counted = re.compile(self.counted)
        return sum(
            math.prod(shape)
            for key, shape in self.shapes.items()
            if counted.fullmatch(key) and not key.endswith("position_ids")
        )


# Values.


def draw(key: str, shape: tuple[int, ...], rng: torch.Generator) -> Iterator[torch.Tensor]:
    """The elements of a tensor in float32, flat, in chunks.

    Matrices and kernels preserve the variance of their input (scaled by fan-in); norms and biases
    nearly preserve it. So activations stay in the range of float16 at any depth.
    """
    if key.endswith("position_ids"):
        yield torch.arange(math.prod(shape))
        return
    mean, deviation = 0.0, 0.02
    if key == "shared.weight":
        deviation = 1.0  # T5 adds its layers to the bare embeddings
    elif len(shape) > 1 and "embed" not in key:
        deviation = math.prod(shape[1:]) ** -0.5
    elif key.endswith("weight") and len(shape) == 1:
        mean = 1.0
    elif key.endswith("logit_scale"):
        mean = math.log(100)
    left = math.prod(shape)
    while left:
        size = min(left, CHUNK)
        yield torch.randn(size, generator=rng).mul_(deviation).add_(mean)
        left -= size


def write_safetensors(
    file: Path, shapes: Shapes, dtype: torch.dtype, name: str, rng: torch.Generator
) -> None:
    """Writes a safetensors file while drawing it: 8 bytes of length, header, tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for key, shape in shapes.items():
        buffer = key.endswith("position_ids")
        size = math.prod(shape) * (8 if buffer else dtype.itemsize)
        header[key] = {
            "dtype": "I64" if buffer else name,
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for key, shape in shapes.items():
            for values in draw(key, shape, rng):
                values = values if values.dtype == torch.int64 else values.to(dtype)
                values.view(torch.uint8).numpy().tofile(stream)


def write_pickle(weights: Weights, file: Path, dtype: torch.dtype, rng: torch.Generator) -> None:
    tensors = {}
    for key, shape in weights.shapes.items():
        values = torch.empty(shape, dtype=torch.int64 if key.endswith("position_ids") else dtype)
        flat, start = values.view(-1), 0
        for part in draw(key, shape, rng):
            flat[start : start + len(part)] = part
            start += len(part)
        tensors[key] = values
    tensors |= {key: tensors[tied] for key, tied in weights.ties.items()}
    torch.save(weights.wrap(tensors), file)


def write_json(file: Path, values: Config) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, indent=2) + "\n")


# Shapes.


def shapes_of(build: Callable[[], nn.Module], prefix: str = "") -> Shapes:
    """Keys and shapes of a module's tensors, without allocating them."""
    with torch.device("meta"):
        module = build()
    return {prefix + key: tuple(value.shape) for key, value in module.state_dict().items()}


def without_image_layers(shapes: Shapes) -> Shapes:
    return {key: s for key, s in shapes.items() if not key.startswith("vision_model.encoder.")}


def unet(config: Config) -> Shapes:
    return shapes_of(lambda: UNet2DConditionModel.from_config(config))


def vae(config: Config) -> Shapes:
    """Uses the attention names of diffusers before 0.15 if the published file has them."""
    shapes = shapes_of(lambda: AutoencoderKL.from_config(config))
    if config["_diffusers_version"] >= "0.15":
        return shapes
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        shapes = {key.replace(f".{new}.", f".{name}."): shape for key, shape in shapes.items()}
    return shapes


def clip_text(config: Config) -> Shapes:
    kind = getattr(transformers, config["architectures"][0])
    shapes = shapes_of(lambda: kind(transformers.CLIPTextConfig(**config)))
    # Since 5.0, transformers omits the tower's prefix in the module.
    whole = re.compile(r"text_(model|projection)\.")
    return {key if whole.match(key) else f"text_model.{key}": s for key, s in shapes.items()}


def xlm_roberta(config: Config, prefix: str, **options: bool) -> Shapes:
    build = transformers.XLMRobertaModel
    shapes = shapes_of(lambda: build(transformers.XLMRobertaConfig(**config), **options), prefix)
    return {
        f"{prefix}embeddings.position_ids": (1, config["max_position_embeddings"]),
        **shapes,
    }


def mt5(config: Config) -> Shapes:
    shapes = shapes_of(lambda: transformers.MT5EncoderModel(transformers.MT5Config(**config)))
    return {key: shape for key, shape in shapes.items() if key != "encoder.embed_tokens.weight"}


def adapter(widths: list[int], fc: int | None, biased: bool, prefix: str = "") -> Shapes:
    """Layer norm, linear layers between consecutive `widths`, and then `fc`."""
    names = [f"projector.{2 * i}" for i in range(len(widths) - 1)]
    if fc is not None:
        names.append("fc")
        widths = [*widths, fc]
    if biased:
        names = [f"fc{i + 1}" for i in range(len(names))]
    shapes: Shapes = {"layernorm.weight": (widths[0],), "layernorm.bias": (widths[0],)}
    for name, width, after in zip(names, widths[:-1], widths[1:], strict=True):
        shapes[f"{name}.weight"] = (after, width)
        if biased or name == "fc":
            shapes[f"{name}.bias"] = (after,)
    return {prefix + key: shape for key, shape in shapes.items()}


# Small.


def small(config: Config) -> Config:
    """A config of the same structure with small widths."""
    if config.get("_class_name") == "UNet2DConditionModel":
        return small_unet(config)
    if config.get("_class_name") == "AutoencoderKL":
        return config | {"block_out_channels": [8, 16, 16, 16], "norm_num_groups": 4}
    if config.get("model_type") == "clip_text_model":
        width = 24 if config["hidden_size"] == 1280 else 32
        sizes = {"hidden_size": width, "projection_dim": width, "intermediate_size": 64}
        sizes |= {"num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 514}
        return config | sizes
    if config.get("model_type") == "mt5":
        sizes = {"d_model": 32, "d_kv": 12, "d_ff": 48, "num_heads": 3}
        return config | sizes | {"num_layers": 2, "num_decoder_layers": 2}
    if "text_config" in config:
        sizes = {name: small(config[name]) for name in ("text_config", "vision_config")}
        return config | sizes | {"projection_dim": 48}
    # Head size 64, as in every BERT: cn_clip's files have no config with it.
    sizes = {"hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2}
    if "max_position_embeddings" in config:
        sizes["max_position_embeddings"] = 80
    for name in ("projection_dim", "project_dim"):
        if name in config:
            sizes[name] = 48
    return config | sizes


def small_unet(config: Config) -> Config:
    levels = len(config["block_out_channels"])
    sizes: Config = {
        "block_out_channels": [16, 32, 32, 32][:levels],
        "norm_num_groups": 8,
        "sample_size": 8,
        "cross_attention_dim": 32,
    }
    if isinstance(config["attention_head_dim"], list):
        sizes["attention_head_dim"] = [2, 4, 4, 4][:levels]
    if "addition_embed_type" in config:
        sizes |= {"addition_time_embed_dim": 8, "cross_attention_dim": 32 + 24}
        sizes["projection_class_embeddings_input_dim"] = 24 + 6 * 8
        sizes["transformer_layers_per_block"] = [1, 1, 2]
    if config.get("reverse_transformer_layers_per_block"):
        sizes["transformer_layers_per_block"] = [1, [2, 2], [1, 1]]
        sizes["reverse_transformer_layers_per_block"] = [[1, 1, 2], [2, 1, 1], 1]
    return config | sizes


# Tokenizers: substitutes.


def characters(is_small: bool) -> list[str]:
    """Characters of the paper's languages: Latin, Cyrillic, kana, Hangul, Han; fewer if small."""
    ranges = [(0x21, 0x7F), (0xC0, 0x100), (0x400, 0x460), (0x3001, 0x3030), (0x3041, 0x3100)]
    ranges += [(0x4E00, 0x4F00)] if is_small else [(0xAC00, 0xD7A4), (0x4E00, 0x9FA6)]
    return [chr(c) for start, stop in ranges for c in range(start, stop)]


def clip_tokenizer(config: Config, pad: str) -> transformers.CLIPTokenizer:
    """Byte-level BPE whose merges are pairs of bytes, as many as fit into the vocabulary.

    The ids are those of CLIP: 256 bytes, 256 bytes that end a word, the merges, <|startoftext|>
    (49406), <|endoftext|> (49407).
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = sorted(alphabet, key=lambda c: (not c.isascii(), not c.isalnum(), c))
    merges = [(a, b + end) for a in letters for b in letters for end in ("</w>", "")]
    merges = merges[: config["vocab_size"] - 2 * len(alphabet) - 2]
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,
        model_max_length=config["max_position_embeddings"],
        pad_token=pad,
    )


def xlm_tokenizer(is_small: bool) -> transformers.XLMRobertaTokenizer:
    """Unigram pieces, one per character: <s> 0, <pad> 1, </s> 2, <unk> 3, as published."""
    pieces = [(piece, -float(i)) for i, piece in enumerate(["▁", *characters(is_small)])]
    special = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
    return transformers.XLMRobertaTokenizer(
        vocab=[*special, *pieces, ("<mask>", 0.0)], model_max_length=512
    )


def bert_words(is_small: bool) -> list[str]:
    """The vocab.txt of a Chinese BERT: [PAD] 0, [UNK] 100 to [MASK] 103, one character per word."""
    words = ["[PAD]", *(f"[unused{i}]" for i in range(1, 100))]
    words += ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    latin = [chr(c) for c in range(0x21, 0x7F) if not chr(c).isupper()]
    words += [*latin, *(f"##{c}" for c in latin if c.isalnum())]
    return words + [chr(c) for c in range(0x4E00, 0x4F00 if is_small else 0x9FA6)]


def write_sentencepiece(file: Path, is_small: bool) -> int:
    """spiece.model like T5's, one character per piece: <pad> 0, </s> 1, <unk> 2; gives its size."""
    from sentencepiece import sentencepiece_model_pb2 as format_

    model = format_.ModelProto()
    model.trainer_spec.model_type = format_.TrainerSpec.UNIGRAM
    model.trainer_spec.pad_id, model.trainer_spec.eos_id = 0, 1
    model.trainer_spec.unk_id, model.trainer_spec.bos_id = 2, -1
    piece = format_.ModelProto.SentencePiece
    for text, kind in (("<pad>", piece.CONTROL), ("</s>", piece.CONTROL), ("<unk>", piece.UNKNOWN)):
        model.pieces.add(piece=text, score=0.0, type=kind)
    for i, text in enumerate(["▁", *characters(is_small)]):
        model.pieces.add(piece=text, score=-float(i + 1))
    file.write_bytes(model.SerializeToString())
    return len(model.pieces)


# Models: each function writes the small files and returns the weights to write.


def base_model(model: str, output: Path, is_small: bool) -> list[Weights]:
    for file in ("model_index.json", "scheduler/scheduler_config.json"):
        write_json(output / file, read_config(f"{model}/{file}"))
    weights = []
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if not (CONFIGS / model / part).is_dir():
            continue
        config = read_config(f"{model}/{part}/config.json")
        config = small(config) if is_small else config
        write_json(output / part / "config.json", config)
        stem, shapes = (
            "diffusion_pytorch_model",
            {"unet": unet, "vae": vae}.get(part, clip_text)(config),
        )
        if part.startswith("text_encoder"):
            stem = "model"
            # open_clip pads with id 0, which is "!"; OpenAI's CLIP pads with the end token.
            pad = "<|endoftext|>" if config["hidden_act"] == "quick_gelu" else "!"
            folder = part.replace("text_encoder", "tokenizer")
            clip_tokenizer(config, pad).save_pretrained(output / folder)
        if part == "text_encoder" and model in ("sd15", "sd21"):
            shapes["text_model.embeddings.position_ids"] = (1, config["max_position_embeddings"])
        weights.append(Weights(Path(part, f"{stem}.safetensors"), shapes, part))
    return weights


def xlm_roberta_large(output: Path, is_small: bool) -> list[Weights]:
    config, tokenizer = sized("xlm-roberta-large", xlm_tokenizer(is_small), is_small)
    tokenizer.save_pretrained(output)
    write_json(output / "config.json", config)
    width = config["hidden_size"]
    shapes = xlm_roberta(config, "roberta.") | {
        "lm_head.bias": (config["vocab_size"],),
        "lm_head.dense.weight": (width, width),
        "lm_head.dense.bias": (width,),
        "lm_head.layer_norm.weight": (width,),
        "lm_head.layer_norm.bias": (width,),
    }
    return [Weights(Path("model.safetensors"), shapes, "xlm-roberta-large", r"roberta\..*")]


def mul_clip(output: Path, is_small: bool) -> list[Weights]:
    """The small one has no config, whose sizes go by the name xlm-roberta-large."""
    config, tokenizer = sized("xlm-roberta-large", xlm_tokenizer(is_small), is_small)
    tokenizer.save_pretrained(output)
    if not is_small:
        name = "open_clip_config.json"
        write_json(output / name, read_config(f"mul_clip/{name}"))
    width = config["hidden_size"]
    shapes = xlm_roberta(config, "text.transformer.", add_pooling_layer=False)
    shapes |= {"text.proj.0.weight": (width, width), "text.proj.2.weight": (width, width)}
    shapes |= open_clip_image("visual.", width, is_small) | {"logit_scale": ()}
    return [
        Weights(Path("open_clip_model.safetensors"), shapes, "mul_clip", r"text\.transformer\..*")
    ]


def open_clip_image(prefix: str, embedding: int, is_small: bool) -> Shapes:
    """The tensors outside the layers of a ViT-H/14."""
    width = 64 if is_small else 1280
    shapes: Shapes = {
        "class_embedding": (width,),
        "positional_embedding": (257, width),
        "proj": (width, embedding),
        "conv1.weight": (width, 3, 14, 14),
        **{
            f"{norm}.{leaf}": (width,)
            for norm in ("ln_pre", "ln_post")
            for leaf in ("weight", "bias")
        },
    }
    return {prefix + key: shape for key, shape in shapes.items()}


def chinese_clip(output: Path, is_small: bool) -> list[Weights]:
    words = bert_words(is_small)
    config, _ = sized("chinese_clip", words, is_small)
    (output / "vocab.txt").write_text("\n".join(words) + "\n")
    write_json(output / "config.json", config)
    build = transformers.ChineseCLIPModel
    shapes = shapes_of(lambda: build(transformers.ChineseCLIPConfig(**config)))
    shapes["text_model.embeddings.position_ids"] = (
        1,
        config["text_config"]["max_position_embeddings"],
    )
    shapes = without_image_layers(shapes)
    return [Weights(Path("pytorch_model.bin"), shapes, "chinese_clip", r"text_model\..*")]


def cn_clip(output: Path, is_small: bool) -> list[Weights]:
    words = bert_words(is_small)
    config = sized("chinese_clip", words, is_small)[0]["text_config"]
    del config["model_type"]
    (output / "vocab.txt").write_text("\n".join(words) + "\n")
    width = config["hidden_size"]
    bert = transformers.BertConfig(**config)
    shapes = shapes_of(
        lambda: transformers.BertModel(bert, add_pooling_layer=False), "module.bert."
    )
    shapes |= open_clip_image("module.visual.", width, is_small)
    shapes |= {"module.text_projection": (width, width), "module.logit_scale": ()}
    return [
        Weights(
            Path("clip_cn_vit-h-14.pt"),
            shapes,
            "cn_clip",
            r"module\.bert\..*",
            wrap=lambda tensors: {"epoch": 0, "step": 0, "name": "random", "state_dict": tensors},
        )
    ]


def alt_clip(output: Path, is_small: bool) -> list[Weights]:
    config, tokenizer = sized("alt_clip", xlm_tokenizer(is_small), is_small)
    tokenizer.save_pretrained(output)
    write_json(output / "config.json", config)
    build = transformers.AltCLIPModel
    shapes = without_image_layers(shapes_of(lambda: build(transformers.AltCLIPConfig(**config))))
    # Since 5.0, transformers names the layers differently in the module, but not in the file.
    shapes = {key.replace(".encoder.layers.", ".encoder.layer."): s for key, s in shapes.items()}
    positions = config["text_config"]["max_position_embeddings"]
    shapes["text_model.roberta.embeddings.position_ids"] = (1, positions)
    return [Weights(Path("pytorch_model.bin"), shapes, "alt_clip", r"text_model\..*")]


def mt5_xl(output: Path, is_small: bool) -> list[Weights]:
    size = write_sentencepiece(output / "spiece.model", is_small)
    config, _ = sized("mt5-xl", range(size), is_small)
    write_json(output / "config.json", config)
    ties = {"encoder.embed_tokens.weight": "shared.weight"}
    return [Weights(Path("pytorch_model.bin"), mt5(config), "mt5-xl", ties=ties)]


def adapters(output: Path, is_small: bool) -> list[Weights]:
    """Torch pickles of bare tensors; one has DataParallel's prefix, like some published files."""

    def shrunk(*widths: int) -> list[int]:
        return [width // 16 for width in widths] if is_small else list(widths)

    def released(name: str, file: str, widths: list[int], fc: int | None, **options) -> Weights:
        (output / name).mkdir()
        shapes = adapter(widths, fc and shrunk(fc)[0], options.pop("biased", False), **options)
        return Weights(Path(name, file), shapes, name)

    plain, pg = "pytorch_model.bin", "pytorch_model_pg.bin"
    return [
        released("sdxl_fc", plain, shrunk(1024, 1024, 1280), 2048, biased=True),
        released("sdxl_pg", pg, shrunk(1024, 2048, 2048, 2048, 1280), 2048),
        released("sdxl_chinese_clip", plain, shrunk(1024, 1024, 1024, 1280), 2048),
        released("sdxl_mul_clip", plain, shrunk(1024, 2048, 2048, 1280), 2048, prefix="module."),
        released("sdxl_mt5", plain, shrunk(2048, 2048, 2048, 1280), 2048),
        released("sdxl_alt_clip", plain, shrunk(768, 2048, 2048, 1280), 2048),
        released("sd15", plain, shrunk(1024, 2048, 2048, 768), None),
        released("sd15_five_layers", plain, shrunk(1024, 3072, 3072, 3072, 3072, 768), None),
    ]


def sized(model: str, words, is_small: bool) -> tuple[Config, object]:
    """The config.json of an encoder, small or not, with a vocabulary that the stand-in fits."""
    config = read_config(f"{model}/config.json")
    text = config.get("text_config", config)
    if not is_small:
        if len(words) > text["vocab_size"]:
            raise ValueError(f"expected at most {text['vocab_size']} words, got {len(words)}")
        return config, words
    config = small(config)
    if "text_config" in config:
        config["text_config"]["vocab_size"] = len(words)
        return config, words
    return config | {"vocab_size": len(words)}, words


MODELS: dict[str, Callable[[Path, bool], list[Weights]]] = {
    **{
        name: lambda output, is_small, name=name: base_model(name, output, is_small)
        for name in BASES.values()
    },
    "xlm-roberta-large": xlm_roberta_large,
    "mul_clip": mul_clip,
    "chinese_clip": chinese_clip,
    "cn_clip": cn_clip,
    "alt_clip": alt_clip,
    "mt5-xl": mt5_xl,
    "adapters": adapters,
}


def write_model(
    model: str, output: Path, *, dtype: str = "float16", small: bool = False, seed: int = 0
) -> dict[str, int]:
    """Writes `model` into the new folder `output`; returns the parameter count of each file.

    Raises:
        ValueError: an unknown name, an output that is not empty, or a part whose parameter count
            differs from the published one.
    """
    if model not in MODELS or dtype not in DTYPES:
        raise ValueError(
            f"expected one of {', '.join(MODELS)} in {', '.join(DTYPES)}, got {model} in {dtype}"
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output}: expected a new or an empty folder")
    output.mkdir(parents=True, exist_ok=True)
    rng = torch.Generator().manual_seed(seed)
    counts = {}
    for weights in MODELS[model](output, small):
        count = counts[str(weights.file)] = weights.count()
        names = (f"{model}/{weights.name}", weights.name)
        expected = next((COUNTS[name] for name in names if name in COUNTS), None)
        if not small and expected not in (None, count):
            raise ValueError(f"{weights.file}: expected {expected} parameters, got {count}")
        start, file = time.perf_counter(), output / weights.file
        if file.suffix == ".safetensors":
            write_safetensors(file, weights.shapes, getattr(torch, dtype), DTYPES[dtype], rng)
        else:
            write_pickle(weights, file, getattr(torch, dtype), rng)
        note = "" if small else ", as published" if expected else ", no published count is known"
        print(
            f"{file}: {count:,} parameters{note}; {file.stat().st_size / 1e6:,.1f} MB "
            f"in {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--output", type=Path, required=True, help="a new or empty folder")
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    parser.add_argument("--small", action="store_true", help="same structure with small widths")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        write_model(args.model, args.output, dtype=args.dtype, small=args.small, seed=args.seed)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
