"""Makes the data set of configs/sdxl_zh.py from webdataset tars with the keys of the authors.

    pea-jax prepare --config prepare_laion_wukong --workers 16

Set prepare.where.train to the tars, here or on the command line, where the flag may be repeated:
--config.prepare.where.train='gs://BUCKET/laion/{00000..00999}.tar'. The filters are those of the
paper: all rows need at least 640x640 pixels; English rows also need an aesthetic score of at least
6 and a watermark probability of at most 0.5. docs/data.md defines which sample becomes which row,
and how to read tars with other keys. At the end the command prints how many rows were kept, and how
many were rejected for each reason.
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
    # Not in the paper. The training sizes have aspect ratios of at most 2, so a crop would remove
    # more than half of an image beyond this limit.
    config.prepare.filters.max_aspect = 4.0
    return config
