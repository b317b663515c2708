"""SDXL in five languages at once, with the multilingual CLIP (XLM-R large, ViT-H).

    pea-jax train --config sdxl_multilingual --workdir runs/sdxl_multilingual

Like configs/sdxl_zh.py, on a data set with captions in all five languages. The adapter has
11,538,432 parameters. By default all rows are sampled equally often; to weight the languages, set
--config.data.language_weights='(2, 1, 1, 1, 1)'.
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
