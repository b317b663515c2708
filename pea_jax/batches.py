"""The batches that a config asks for, as training reads them."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from pea_jax.data.pipeline import Loader, Tokenize, make_loader
from pea_jax.data.source import Source


def open_loader(
    config: ConfigDict,
    source: Source,
    rows: Mapping[str, int],
    *,
    native_tokenizer: Tokenize,
    english_tokenizer: Tokenize,
    shard_index: int = 0,
    shard_count: int = 1,
) -> Loader:
    """The loader of a run.

    Args:
        config: see configs/base.py.
        source: of the rows.
        rows: of a step, native and parallel, over all hosts (`run.batch_rows`).
        native_tokenizer: of the language encoder.
        english_tokenizer: of the base model.
        shard_index: of this host.
        shard_count: how many hosts there are.

    Raises:
        ValueError: as `make_loader` does.
    """
    return make_loader(
        source,
        native_batch=rows["native"],
        parallel_batch=rows["parallel"],
        seed=config.seed,
        shard_index=shard_index,
        shard_count=shard_count,
        native_tokenizer=native_tokenizer,
        english_tokenizer=english_tokenizer,
        image_size=config.data.image_size,
        languages=config.data.languages,
        workers=config.data.workers,
        max_bad=config.data.max_bad_images,
    )
