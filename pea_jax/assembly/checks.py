"""Numbers of a config that must fit each other, the devices and the base model."""

from ml_collections import ConfigDict

from pea_jax.data import buckets
from pea_jax.data.read import plan
from pea_jax.distill.batch import check_rows
from pea_jax.weights.bases import read_base_config


def check(config: ConfigDict, data_shards: int) -> None:
    """Refuse numbers out of range, all of them in one raise.

    Args:
        config: see configs/base.py.
        data_shards: number of devices that a batch is split over.
    """
    settings, data = config.train, config.data
    problems = [
        f"train.{name}: expected at least 1, got {settings[name]}"
        for name in ("steps", "accumulation_steps", "log_every", "save_every", "keep")
        if settings[name] < 1
    ]
    if settings.sample_every < 0:
        problems.append(f"train.sample_every: expected 0 or more, got {settings.sample_every}")
    if settings.sample_every > 0 and not settings.sample_prompts:
        problems.append("train.sample_prompts: expected a prompt or more, or train.sample_every 0")
    if not 0 <= data.native_batch_size <= data.batch_size or data.batch_size < 1:
        problems.append(
            f"data.native_batch_size: expected 0 to data.batch_size = {data.batch_size}, "
            f"got {data.native_batch_size}"
        )
    if data.native_batch_size and not config.distill.hybrid:
        problems.append(
            "data.native_batch_size: without distill.hybrid every row is parallel, expected 0, "
            f"got {data.native_batch_size}"
        )
    problems += plan.config_problems(data.buckets, data.crop, data.languages, data.language_weights)
    if problems:
        raise ValueError("; ".join(problems))
    check_rows(batch_rows(config, data_shards), data_shards, settings.accumulation_steps)


def check_sizes(config: ConfigDict) -> None:
    """Refuse image sizes that the base model's VAE does not take."""
    factor = read_base_config(config.model.base).vae.downsampling_factor
    wrong = [
        buckets.name(size)
        for size in picture_sizes(config)
        if any(side < 1 or side % factor for side in size)
    ]
    if wrong:
        field = "data.buckets" if config.data.buckets else "data.image_size"
        raise ValueError(
            f"{field}: expected heights and widths that are multiples of {factor}, the VAE's "
            f"downsampling factor, got {', '.join(wrong)}"
        )


def picture_sizes(config: ConfigDict) -> list[tuple[int, int]]:
    """Every height and width that a run trains on; a step has one of them."""
    sizes = [(bucket[0], bucket[1]) for bucket in config.data.buckets]
    return sizes or [(config.data.image_size,) * 2]


def batch_rows(config: ConfigDict, data_shards: int) -> dict[str, int]:
    """Number of native and parallel rows of a step, over all devices."""
    data = config.data
    times = data_shards if data.per_device else 1
    native = data.native_batch_size * times
    return {"native": native, "parallel": data.batch_size * times - native}
