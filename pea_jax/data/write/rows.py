"""Conversion of records to rows, with the reasons for rejecting a record."""

import dataclasses
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from pea_jax.data import images, schema
from pea_jax.data.origins.record import Record, RecordShard
from pea_jax.data.write.captions import Cleaning
from pea_jax.data.write.filters import Filters
from pea_jax.data.write.mapping import FieldMapping, UnfitError

EMPTY = "image is empty"
HUGE = "image has too many pixels"
NOTHING_LEFT = "nothing is left of the caption when it is cleaned"
OTHER_SCRIPT = "caption is not in the script of its language"
OTHER_SCRIPT_EN = "caption_en is not in the script of its language"


@dataclass(frozen=True)
class Rules:
    """The rules that turn a record into a row."""

    mapping: FieldMapping
    cleaning: Cleaning
    filters: Filters

    def apply(self, record: Record) -> schema.Row | schema.Rejected:
        """The row of a record. Cheap checks come first, decoding the image last."""
        key = f"{record.shard}/{record.name}" if record.name else record.shard
        if record.fault is not None:
            return schema.Rejected(_printable(key), record.fault)
        try:
            key = self.mapping.key_of(record)
            return self._row(record, key)
        except UnfitError as unfit:
            return schema.Rejected(_printable(key), str(unfit))

    def _row(self, record: Record, key: str) -> schema.Row:
        if record.image is None:
            raise UnfitError(schema.NO_IMAGE)
        if not record.image:
            raise UnfitError(EMPTY)
        texts = self.mapping.texts(record)
        had_caption = bool(texts.caption)
        texts = dataclasses.replace(
            texts,
            caption=self.cleaning.clean(texts.caption, texts.language, native=texts.native),
            caption_en=self.cleaning.clean(texts.caption_en, "en", native=False),
        )
        row = schema.Row(
            key=key, image=record.image, height=0, width=0, **dataclasses.asdict(texts)
        )
        if had_caption and not texts.caption:
            raise UnfitError(NOTHING_LEFT)
        if (problem := schema.problem(row)) is not None:
            raise UnfitError(problem)
        self.filters.check_texts(texts)
        if not self.cleaning.fits(texts.caption, texts.language):
            raise UnfitError(OTHER_SCRIPT)
        if not texts.native and not self.cleaning.fits(texts.caption_en, "en"):
            raise UnfitError(OTHER_SCRIPT_EN)
        self.filters.check_scores(record.fields, self.mapping, native=texts.native)
        height, width = self._size(record.image)
        return dataclasses.replace(row, height=height, width=width)

    def _size(self, image: bytes) -> tuple[int, int]:
        """Height and width of an image that passes the filters and can be decoded."""
        try:
            # Pillow's warnings concern sizes that are checked here.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.filters.check_size(*images.size_of(image))
                return images.verify(image)
        except images.HugeImageError as error:
            raise UnfitError(HUGE) from error
        except images.CorruptImageError as error:
            raise UnfitError(images.UNREADABLE) from error


@dataclass(frozen=True)
class RowShard:
    """A shard of rows for `builder.build`."""

    records: RecordShard
    rules: Rules

    def __call__(self) -> Iterator[schema.Row | schema.Rejected]:
        """The row or the rejection of each record, in order."""
        for record in self.records():
            yield self.rules.apply(record)


def _printable(key: str) -> str:
    """The key in valid UTF-8 for the report."""
    return key.encode("utf-8", "backslashreplace").decode()
