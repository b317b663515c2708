"""The loader: an endless, deterministic stream of this host's share of every batch.

The seed and the step determine every batch (`plan`). Host i of n takes the i-th of n equal slices
of every batch part. The loader's state is therefore one number. The global batch depends neither on
the number of hosts nor on worker processes or threads.

A row with an unreadable image is replaced by the next readable row of its stream in storage order.
All other rows keep their places.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Int

from pea_jax.data.buckets import Bucket
from pea_jax.data.read import elements
from pea_jax.data.read.fetch import Fetch
from pea_jax.data.read.plan import CENTRE, config_problems, make_plan
from pea_jax.data.read.source import Source

#: Texts -> token ids and mask, each [texts, length], e.g. `weights.tokenizers.Tokenizer`.
Tokenize = Callable[[Sequence[str]], tuple[Int[np.ndarray, "B L"], Int[np.ndarray, "B L"]]]

#: {"native": part, "parallel": part}; a part without rows is absent. A part is {"pixels": uint8
#: [b, H, W, 3], "time_ids": int32 [b, 6], "ids": int32 [b, L], "mask": int32 [b, L], "language":
#: int32 [b]}; the parallel part also has "english_ids" and "english_mask". Time ids are SDXL's size
#: conditioning: original height and width, top and left of the crop, height and width of the
#: pixels. A language is an index into `Loader.languages`. Rows of a `LatentSource` have "moments",
#: float32 [b, 2, h, w, C], instead of pixels: mean and log variance, not sampled.
Batch = dict[str, dict[str, np.ndarray]]

_MAX_WARNINGS = 10


class BadImagesError(ValueError):
    """More images of the data set are unreadable on a host than the run accepts."""


class BadImageWarning(UserWarning):
    """An image of the data set is unreadable; another row replaces it."""


def _tokens(tokenize: Tokenize, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    ids, mask = (np.asarray(array, np.int32) for array in tokenize(texts))
    if ids.ndim != 2 or ids.shape != mask.shape or len(ids) != len(texts):
        raise ValueError(
            f"a tokenizer gives ids and mask, each [{len(texts)}, L], got {ids.shape}, {mask.shape}"
        )
    return ids, mask


class Loader(grain.DatasetIterator):
    """An endless iterator of batches; created by `make_loader`.

    The state is JSON. It holds the step, the unreadable images of each host, and the values that
    must stay the same: digest of the data set, seed, batch sizes, number of rows and, unless they
    have their defaults, buckets, crop, flips and language weights. A loader restored from a state
    continues with exactly the next batch, with any number of workers and hosts and any prefetching.
    All hosts share one step. Host i restores the unreadable images of the former host i, if any.
    """

    def __init__(
        self,
        fetch: Fetch,
        native_tokenizer: Tokenize,
        english_tokenizer: Tokenize | None,
        agreed: Mapping[str, Any],
        workers: int,
    ):
        super().__init__()
        self._fetch = fetch
        self._native_tokenizer = native_tokenizer
        self._english_tokenizer = english_tokenizer
        self._workers = workers
        self._agreed = dict(agreed)
        self._step = 0
        self._bad: dict[str, str] = {}
        self._elements: grain.DatasetIterator | None = None

    @property
    def bad(self) -> dict[str, str]:
        """Images that were unreadable on this host so far: key -> reason. Each counts once."""
        return dict(self._bad)

    @property
    def languages(self) -> tuple[str, ...]:
        """The names of the numbers in a batch's "language"."""
        return self._fetch.languages

    @property
    def rows(self) -> dict[str, int]:
        """Rows per epoch: part -> number, over all hosts."""
        return {part.name: part.rows for part in self._fetch.plan.parts}

    def size(self, step: int) -> tuple[int, int]:
        """Height and width of the images of a step; steps count from 0."""
        return self._fetch.plan.size(step)

    def __next__(self) -> Batch:
        self._assert_not_closed()
        if self._elements is None:
            first = self._step * self._fetch.share
            self._elements = elements.start(self._fetch, first, self._workers)
        try:
            rows = [next(self._elements) for _ in range(self._fetch.share)]
            for row in rows:
                self._count_bad(row)
            batch = self._assemble(rows)
        except BaseException:
            # Some elements of the batch are consumed: another call starts the batch again.
            self._stop()
            raise
        self._step += 1
        return batch

    def _count_bad(self, row: Mapping[str, Any]) -> None:
        limit = self._fetch.max_bad
        for key, reason in row["bad"]:
            if key in self._bad:
                continue
            self._bad[key] = reason
            if len(self._bad) <= min(limit, _MAX_WARNINGS):
                last = " (further ones are only counted)" if len(self._bad) == _MAX_WARNINGS else ""
                warnings.warn(
                    f"image of row {key} can't be read: {reason}{last}", BadImageWarning, 1
                )
        if len(self._bad) > limit or row["picture"] is None:
            rows, folder = sum(self.rows.values()), self._fetch.source.folder
            some = "; ".join(f"{key}: {why}" for key, why in list(self._bad.items())[:3])
            raise BadImagesError(
                f"{len(self._bad)} of {rows} images in {folder} can't be read, at most {limit} are "
                f"accepted on a host ({some}{'; ...' if len(self._bad) > 3 else ''})"
            )

    def _assemble(self, rows: list[dict[str, Any]]) -> Batch:
        ids, mask = _tokens(self._native_tokenizer, [row["caption"] for row in rows])
        batch, start = {}, 0
        for part in self._fetch.plan.parts:
            chosen = slice(start, start + part.share)
            start += part.share
            batch[part.name] = {
                **{
                    name: np.stack([row["picture"][name] for row in rows[chosen]])
                    for name in rows[chosen][0]["picture"]
                },
                "language": np.stack([row["language"] for row in rows[chosen]]),
                "ids": ids[chosen],
                "mask": mask[chosen],
            }
            if part.name == "parallel":
                english = [row["caption_en"] for row in rows[chosen]]
                english_ids, english_mask = _tokens(self._english_tokenizer, english)
                batch[part.name] |= {"english_ids": english_ids, "english_mask": english_mask}
        return batch

    def keys(self, step: int) -> dict[str, list[str]]:
        """The keys of this host's rows in a step, by part; reads the rows again."""
        found, number = {}, step * self._fetch.share
        for part in self._fetch.plan.parts:
            rows = [self._fetch(number + slot) for slot in range(part.share)]
            found[part.name] = [row["key"] for row in rows]
            number += part.share
        return found

    def get_state(self) -> dict[str, Any]:
        """The state for `set_state`; a copy that does not change later."""
        bad = {str(self._fetch.shard_index): dict(self._bad)}
        return {"step": self._step, "bad": bad, **self._agreed}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a state.

        Raises:
          ValueError: the state has another seed, batch size, data set or selection of rows.
        """
        wrong = [
            f"{name} {state.get(name)!r}, here {self._agreed.get(name)!r}"
            for name in self._agreed | state
            if name not in ("step", "bad") and state.get(name) != self._agreed.get(name)
        ]
        if wrong:
            raise ValueError(f"the data iterator's state is of another run: {'; '.join(wrong)}")
        self._stop()
        self._step = int(state["step"])
        self._bad = dict(state["bad"].get(str(self._fetch.shard_index), {}))

    @staticmethod
    def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Merge the states of all hosts after one step into a state for every host.

        Args:
          states: one per host, for any number of hosts.

        Raises:
          ValueError: they differ in more than the unreadable images.
        """
        common = [{k: v for k, v in state.items() if k != "bad"} for state in states]
        differing = sorted(
            name
            for name in {name for one in common for name in one}
            if any(one.get(name) != common[0].get(name) for one in common)
        )
        if differing:
            values = "; ".join(f"{name} {[one.get(name) for one in common]}" for name in differing)
            raise ValueError(f"the hosts' states of the data iterator disagree: {values}")
        # Per host, because each host counts only the images that it read itself.
        bad = {host: found for state in states for host, found in state["bad"].items()}
        return {**common[0], "bad": bad}

    def close(self) -> None:
        """End worker processes and threads permanently."""
        self._closed = True
        self._stop()

    def _stop(self) -> None:
        if self._elements is not None:
            self._elements.close()
            self._elements = None


def make_loader(
    source: Source,
    *,
    native_batch: int,
    parallel_batch: int,
    seed: int,
    native_tokenizer: Tokenize,
    english_tokenizer: Tokenize | None,
    image_size: int,
    buckets: Sequence[Bucket] = (),
    crop: str = CENTRE,
    random_flip: bool = False,
    languages: Sequence[str] | None = None,
    language_weights: Sequence[float] = (),
    shard_index: int = 0,
    shard_count: int = 1,
    workers: int = 0,
    max_bad: int = 0,
) -> Loader:
    """An endless iterator of this host's share of every batch.

    Args:
      source: the split to read.
      native_batch: native rows per step, over all hosts.
      parallel_batch: parallel rows per step, over all hosts.
      seed: for the order, the crops and the flips.
      native_tokenizer: for captions. Called in this process, once per batch.
      english_tokenizer: for English captions; None if parallel_batch is 0.
      image_size: height and width of the pixels without buckets; see `images.decode`.
      buckets: sizes of the pixels, one per step; see `plan`.
      crop: "centre" or "random", for images of another aspect.
      random_flip: mirror every image with probability 1/2.
      languages: of the captions; all by default. Batches number the languages in this order.
      language_weights: relative frequency of each language; none takes all rows equally often.
      shard_index: index of this host.
      shard_count: number of hosts, which divides both batch sizes.
      workers: decoding processes; 0 decodes in threads of this process.
      max_bad: number of different images that may be unreadable on this host. Each causes a warning
        and is replaced. One more raises `BadImagesError`, a ValueError, in its batch.

    Raises:
      ValueError: an invalid count, or a batch size without rows in the data set.
    """
    sizes = {"native": native_batch, "parallel": parallel_batch}
    _check(sizes, english_tokenizer, shard_index, shard_count, (seed, workers, max_bad), image_size)
    languages = tuple(source.languages if languages is None else languages)
    if problems := config_problems(buckets, crop, languages, language_weights):
        raise ValueError("; ".join(problems))
    plan = make_plan(
        source,
        batch=sizes,
        seed=seed,
        buckets=buckets or [(image_size, image_size, 1.0)],
        languages=languages,
        weights=dict(zip(languages, language_weights, strict=False)),
        shard_count=shard_count,
    )
    agreed = {
        "dataset_digest": source.digest,
        "seed": seed,
        "batch": {part.name: part.batch for part in plan.parts},
        "rows": {part.name: part.rows for part in plan.parts},
        # Defaults are not stored.
        **({"buckets": [list(bucket) for bucket in plan.buckets]} if buckets else {}),
        **({"crop": crop} if crop != CENTRE else {}),
        **({"random_flip": True} if random_flip else {}),
        **({"weights": [list(languages), list(language_weights)]} if language_weights else {}),
    }
    fetch = Fetch(source, languages, plan, shard_index, crop, random_flip, max_bad)
    return Loader(fetch, native_tokenizer, english_tokenizer, agreed, workers)


def _check(
    sizes: Mapping[str, int],
    english_tokenizer: Tokenize | None,
    shard_index: int,
    shard_count: int,
    not_negative: tuple[int, int, int],
    image_size: int,
) -> None:
    if min(sizes.values()) < 0 or not any(sizes.values()):
        raise ValueError(f"batch sizes are counts of rows, not both 0, got {sizes}")
    if not 0 <= shard_index < shard_count:
        raise ValueError(f"host {shard_index} of {shard_count}: expected 0 to {shard_count - 1}")
    for name, size in sizes.items():
        if size % shard_count:
            raise ValueError(f"{size} {name} rows a step don't divide over {shard_count} hosts")
    if min(not_negative) < 0 or image_size < 1:
        raise ValueError(
            "seed, workers and max_bad are at least 0, image_size at least 1, "
            f"got {', '.join(map(str, not_negative))}, {image_size}"
        )
    if sizes["parallel"] and english_tokenizer is None:
        raise ValueError("parallel rows need an english_tokenizer, got None")
