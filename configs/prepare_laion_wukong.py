"""The data set of configs/sdxl_zh.py, of webdataset tars with the keys of the paper's authors.

    pea-jax prepare --config prepare_laion_wukong --workers 16

Set prepare.where.train to the tars, here or on the command line, where it may be given several
times: --config.prepare.where.train='gs://BUCKET/laion/{00000..00999}.tar'. Filters are the paper's:
English rows of at least 640x640 pixels, aesthetic score 6 and at most 0.5 for a watermark; native
rows by their pixels alone. docs/data.md tells which sample becomes which row, and how tars with
other keys are taken. The command ends with a table of what was kept, and what was not and why.
"""

from ml_collections import ConfigDict

from pea_jax.configs import sdxl_zh


def get_config() -> ConfigDict:
    config = sdxl_zh.get_config()

    config.prepare.origin = "tars"
    config.prepare.where.train = ("~/laion/*.tar", "~/wukong/*.tar")
    config.prepare.mapping.preset = "official"

    config.prepare.filters.min_area = 640 * 640
    config.prepare.filters.min_aesthetic = 6.0
    config.prepare.filters.max_watermark = 0.5
    # Not the paper's: its pictures are at most twice as long as wide, or the other way around, and
    # of what is longer than this most is cropped away.
    config.prepare.filters.max_aspect = 4.0
    return config
