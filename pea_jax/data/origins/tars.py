"""Webdataset tars, as img2dataset writes them.

A sample is a sequence of adjacent files whose names are equal up to the first dot, such as
`00000/000000012.jpg`, `.json` and `.txt`. The JSON file holds its fields, and the txt file its
field "txt". Tars are read as streams.
"""

import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pea_jax.data.origins import files
from pea_jax.data.origins.record import (
    MAX_PICTURE,
    MAX_TEXT,
    TOO_LARGE,
    Record,
    json_object,
    text_of,
)
from pea_jax.runtime import storage

ENDINGS = (".tar", ".tar.gz", ".tgz")
PICTURES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("json", "txt")

NO_TEXT = "json or txt is missing"
BAD_JSON = "json can't be read"
NO_PICTURE = "sample has no picture"
SEVERAL = "sample has several pictures"
STRAY = "file is no part of a sample"
DAMAGED = "tar is cut short or damaged"

#: Path up to the first dot of the file name, and the ending. Hidden files do not match.
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)

#: Ending -> size limit in bytes. Other files are not read.
_LIMITS = {**dict.fromkeys(PICTURES, MAX_PICTURE), **dict.fromkeys(TEXTS, MAX_TEXT)}

#: Headers that describe the next header. tarfile reads them whole.
_DESCRIBING = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_DESCRIBING += (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


@dataclass(frozen=True)
class TarShard:
    """Yields the samples of one tar.

    For a damaged tar, it yields the samples before the damage and then one record without a name,
    which also stands for an incomplete last sample.

    Attributes:
      file: the tar, plain or compressed.
    """

    file: files.File

    @property
    def source(self) -> str:
        """The path of the tar."""
        return self.file.path

    def __call__(self) -> Iterator[Record]:
        """The records, in the order of the tar."""
        shard = self.file.label
        sample, damaged = None, False
        with storage.faults(), storage.as_path(self.file.path).open("rb") as stream:
            try:
                for name, data in _members(stream):
                    stem, suffix = _split(name)
                    if not suffix:
                        # File systems leave hidden files, such as .DS_Store and ._000.jpg.
                        if not name.rsplit("/", 1)[-1].startswith("."):
                            yield Record(name, shard, None, {}, STRAY)
                        continue
                    if sample is not None and (sample.name != stem or suffix in sample.files):
                        yield sample.record(shard)
                        sample = None
                    sample = sample or _Sample(stem)
                    sample.files[suffix] = data
            except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError):
                damaged = True
        if sample is not None and (not damaged or sample.is_complete):
            yield sample.record(shard)
        if damaged:
            yield Record("", shard, None, {}, DAMAGED)


def shards(where: Sequence[str]) -> list[TarShard]:
    """One shard per tar, in the order of `files.find`.

    Raises:
      ValueError: a name matches no tar.
    """
    return [TarShard(file) for file in files.find(where, ENDINGS)]


@dataclass
class _Sample:
    """Files of one stem.

    Attributes:
      name: the stem.
      files: ending -> content; None for a file that is too large.
    """

    name: str
    files: dict[str, bytes | None] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        return bool({*PICTURES} & self.files.keys() and {*TEXTS} & self.files.keys())

    def record(self, shard: str) -> Record:
        if None in self.files.values():
            return Record(self.name, shard, None, {}, TOO_LARGE)
        pictures = [suffix for suffix in PICTURES if suffix in self.files]
        image = self.files[pictures[0]] if pictures else None
        fields, fault = {}, None
        if not pictures:
            fault = NO_PICTURE
        elif len(pictures) > 1:
            fault = SEVERAL
        elif not self.is_complete:
            fault = NO_TEXT
        if "json" in self.files:
            fields = json_object(self.files["json"])
            if fields is None:
                fields, fault = {}, fault or BAD_JSON
        if "txt" in self.files:
            fields = {**fields, "txt": text_of(self.files["txt"])}
        return Record(self.name, shard, image, fields, fault)


def _split(name: str) -> tuple[str, str]:
    """Stem and ending of a file; the ending is "" for a file outside of samples."""
    match = _NAME.fullmatch(name)
    return (match[1], match[2].lower()) if match else (name, "")


class _Header(tarfile.TarInfo):
    """Raises for a damaged header in the middle of a tar, which tarfile takes for the end.

    Also raises for a name or another attribute that is larger than `MAX_TEXT`.
    """

    @classmethod
    def frombuf(cls, *args: Any) -> tarfile.TarInfo:
        header = super().frombuf(*args)
        if header.size > MAX_TEXT and header.type in _DESCRIBING:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def _members(stream: io.IOBase) -> Iterator[tuple[str, bytes | None]]:
    """Name and content of each file in a tar stream.

    The content is b"" for unknown endings, and None for a file that is too large.

    Raises:
      tarfile.TarError: the tar is damaged or truncated, or continues after its end mark.
    """
    with _open(stream) as tar:
        for member in tar:
            # tarfile collects members for seeking, which streams do not need.
            tar.members = []
            if not member.isfile():
                continue
            limit = _LIMITS.get(_split(member.name)[1], 0)
            if not limit or member.size > limit:
                yield member.name, None if limit else b""
                continue
            with tar.extractfile(member) as file:
                data = file.read()
            if len(data) != member.size:
                raise tarfile.ReadError("unexpected end of data")
            yield member.name, data
        while rest := tar.fileobj.read(tarfile.RECORDSIZE):
            if rest.strip(b"\0"):
                raise tarfile.ReadError("data after the end mark")


def _open(stream: io.IOBase) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header)
    except TypeError as error:  # ord(b"") in tarfile
        raise tarfile.ReadError("the header of gzip is cut short") from error
