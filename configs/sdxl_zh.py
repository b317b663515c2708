"""SDXL in Chinese, with Chinese-CLIP ViT-H: the paper's main setting.

    pea-jax train --config sdxl_zh --workdir runs/sdxl_zh --config.data.data_dir=DIR

Needs a data set like that of configs/sd15_zh.py; configs/prepare_laion_wukong.py makes it. The
adapter has 6,033,408 parameters, the "6M" of the paper. The authors stopped after about 50,000
steps of 240 rows on 24 GPUs. Training images have nine aspect ratios and about 640x640 pixels;
samples have 1024x1024. Each aspect ratio compiles its own program; --config.data.buckets='()'
trains on squares only. On fewer devices, reduce data.batch_size, data.native_batch_size and
optim.learning_rate together; model.remat and mesh.fsdp save memory.
"""

from ml_collections import ConfigDict

from pea_jax.configs import base
from pea_jax.data import buckets


def get_config() -> ConfigDict:
    config = base.get_config()

    config.model.base = "stabilityai/stable-diffusion-xl-base-1.0"
    config.model.language_encoder = "chinese_clip"
    config.model.language_max_length = 52
    config.adapter.hidden_width = 1024

    config.data.dataset = "laion_wukong"
    config.data.image_size = 640
    config.data.buckets = buckets.SDXL
    config.data.batch_size = 240
    config.data.native_batch_size = 48

    # As in the authors' SDXL script; their SD script uses no offset.
    config.distill.noise_offset = 0.5

    config.train.steps = 50_000

    config.sample.height = 1024
    config.sample.width = 1024
    return config
