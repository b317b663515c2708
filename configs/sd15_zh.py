"""Stable Diffusion 1.5 in Chinese, with XLM-R large: the paper's SD setting.

    pea-jax train --config sd15_zh --workdir runs/sd15_zh --config.data.data_dir=DIR

Needs a data set that `pea-jax prepare` made (docs/data.md): images with Chinese captions, some of
them native, the others paired with English captions. The adapter has 7,866,368 parameters. The
authors stopped after about 42,000 steps of 320 rows on eight GPUs; images follow common prompts
much earlier. On fewer devices, reduce data.batch_size, data.native_batch_size and
optim.learning_rate together.
"""

from ml_collections import ConfigDict

from pea_jax.configs import base


def get_config() -> ConfigDict:
    config = base.get_config()

    config.model.base = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    config.model.language_encoder = "FacebookAI/xlm-roberta-large"
    config.adapter.hidden_width = 2048

    config.data.dataset = "laion_wukong"
    config.data.image_size = 512
    config.data.batch_size = 320
    config.data.native_batch_size = 80

    config.train.steps = 42_000
    return config
