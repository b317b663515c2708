"""SDXL in five languages at once, with the multilingual CLIP (XLM-R large, ViT-H).

    pea-jax train --config sdxl_multilingual --workdir runs/sdxl_multilingual

As configs/sdxl_zh.py, on a data set that has captions in all of these languages. Adapter:
11,538,432 parameters. All rows come equally often, so a language as often as it has rows; or give
each a weight: --config.data.language_weights='(2, 1, 1, 1, 1)'.
"""

from ml_collections import ConfigDict

from pea_jax.configs import sdxl_zh


def get_config() -> ConfigDict:
    config = sdxl_zh.get_config()

    config.model.language_encoder = "mul_clip"
    config.model.language_max_length = 77
    config.adapter.hidden_width = 2048

    config.data.dataset = "laion_multi"
    config.data.languages = ("zh", "ja", "ko", "ru", "it")

    config.train.sample_prompts = (
        "山上的古寺",
        "山の上の古い寺",
        "산 위의 오래된 절",
        "старый храм на горе",
        "un antico tempio sulla montagna",
    )
    return config
