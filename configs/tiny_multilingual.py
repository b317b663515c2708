"""Tinyworld in five languages with one adapter: Chinese, Japanese, Korean, Russian and Italian.

    pea-jax train --config tiny_multilingual --workdir runs/tiny_multilingual
    pea-jax evaluate --workdir runs/tiny_multilingual

Like configs/tiny_zh.py, with a wider adapter and 2,500 steps; all languages are sampled equally.
Expect seven to fifteen minutes on two cores. The loss falls from about 0.5 to about 0.02.
`pea-jax evaluate` then scores every language within a few per cent of the English teacher, on the
prompt sets `general` and `native`.
"""

from ml_collections import ConfigDict

from pea_jax.configs import tiny_zh


def get_config() -> ConfigDict:
    config = tiny_zh.get_config()

    config.adapter.hidden_width = 384

    config.data.languages = ("zh", "ja", "ko", "ru", "it")

    config.optim.decay_steps = 2500

    config.train.steps = 2500
    config.train.save_every = 500
    config.train.sample_every = 500
    config.train.sample_prompts = (
        "夜空中有一个红色的大圆形",
        "夜空の大きな赤い提灯",
        "눈 위의 작은 파란 별",
        "большая розовая матрёшка в тумане",
        "piccola gondola verde sulla sabbia",
    )
    return config
