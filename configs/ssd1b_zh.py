"""SSD-1B in Chinese, with Chinese-CLIP ViT-H. SSD-1B is a pruned SDXL: 1.3 of 2.6 billion weights.

    pea-jax train --config ssd1b_zh --workdir runs/ssd1b_zh --config.data.data_dir=DIR

Like configs/sdxl_zh.py. An adapter trained on SDXL fits SSD-1B unchanged; this config trains one
for SSD-1B itself (6,033,408 parameters). To start from an SDXL adapter, set adapter.init_from. The
middle block of SSD-1B has no attention, but its output is distilled like every other block's.
"""

from ml_collections import ConfigDict

from pea_jax.configs import sdxl_zh


def get_config() -> ConfigDict:
    config = sdxl_zh.get_config()

    config.model.base = "segmind/SSD-1B"
    return config
