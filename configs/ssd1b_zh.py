"""SSD-1B in Chinese: the pruned SDXL, 1.3 of 2.6 billion parameters, with Chinese-CLIP ViT-H.

    pea-jax train --config ssd1b_zh --workdir runs/ssd1b_zh --config.data.data_dir=DIR

As configs/sdxl_zh.py. An adapter that was trained on SDXL fits
SSD-1B as it is; this trains one for it alone (6,033,408 parameters), from an SDXL one where
adapter.init_from names it. The middle block has no attention; its output is distilled all the same.
"""

from ml_collections import ConfigDict

from pea_jax.configs import sdxl_zh


def get_config() -> ConfigDict:
    config = sdxl_zh.get_config()

    config.model.base = "segmind/SSD-1B"
    return config
