"""Webdataset tars, as img2dataset and the makers of WuKong's write them.

A sample is what lies next to each other under one name up to the first dot of the file's name:
`00000/000000012.jpg`, `.json` and `.txt`. Its fields are those of the json; the text of the txt is
the field "txt". A tar is read once, from its beginning to its end.
"""

import io
import json
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pea_jax.data.origins import files
from pea_jax.data.origins.record import MAX_PICTURE, MAX_TEXT, TOO_LARGE, Record, text_of
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

#: Folder and name up to the first dot, and what follows; hidden files are none.
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)

#: The most bytes of a file that is read, by ending; no other is read.
_LIMITS = {**dict.fromkeys(PICTURES, MAX_PICTURE), **dict.fromkeys(TEXTS, MAX_TEXT)}

#: Types of headers that tell of the next one; tarfile reads them whole.
_DESCRIBING = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)

#: The field that a txt becomes.
TXT = "txt"


@dataclass(frozen=True)
class TarShard:
    """Yields the samples of one tar.

    Of a tar that is damaged the samples before the damage are yielded, and then a record that
    names the tar, which also stands for the sample that the damage cut in two.

    Attributes:
      file: the tar, plain or compressed.
    """

    file: files.File

    @property
    def source(self) -> str:
        """What it is read from."""
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
                        if not _is_hidden(name):
                            yield Record(name, shard, None, {}, STRAY)
                        continue
                    if sample is not None and (sample.name != stem or suffix in sample.parts):
                        yield sample.record(shard)
                        sample = None
                    sample = sample or _Sample(stem)
                    sample.parts[suffix] = data
            except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError):
                damaged = True
        if sample is not None and (not damaged or sample.is_whole):
            yield sample.record(shard)
        if damaged:
            yield Record("", shard, None, {}, DAMAGED)


def shards(where: Sequence[str]) -> list[TarShard]:
    """One shard a tar, in the order of `files.find`.

    Raises:
      ValueError: a name that stands for no tar.
    """
    return [TarShard(file) for file in files.find(where, ENDINGS)]


@dataclass
class _Sample:
    """Files of one stem.

    Attributes:
      name: the stem.
      parts: content by ending; None where the file is too large.
    """

    name: str
    parts: dict[str, bytes | None] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        return bool({*PICTURES} & self.parts.keys() and {*TEXTS} & self.parts.keys())

    def record(self, shard: str) -> Record:
        if None in self.parts.values():
            return Record(self.name, shard, None, {}, TOO_LARGE)
        pictures = [suffix for suffix in PICTURES if suffix in self.parts]
        image = self.parts[pictures[0]] if pictures else None
        fields, fault = {}, None
        if not pictures:
            fault = NO_PICTURE
        elif len(pictures) > 1:
            fault = SEVERAL
        elif not {*TEXTS} & self.parts.keys():
            fault = NO_TEXT
        if "json" in self.parts:
            try:
                fields = json.loads(text_of(self.parts["json"]))
            except (ValueError, RecursionError):
                fault = fault or BAD_JSON
            else:
                if not isinstance(fields, dict):
                    fields, fault = {}, fault or BAD_JSON
        if "txt" in self.parts:
            fields = {**fields, TXT: text_of(self.parts["txt"])}
        return Record(self.name, shard, image, fields, fault)


def _split(name: str) -> tuple[str, str]:
    """Stem and ending of a file of a sample; no ending where it is none."""
    found = _NAME.fullmatch(name)
    return (found[1], found[2].lower()) if found else (name, "")


def _is_hidden(name: str) -> bool:
    """What file systems leave in tars, such as .DS_Store and ._000.jpg."""
    return name.rsplit("/", 1)[-1].startswith(".")


class _Header(tarfile.TarInfo):
    """tarfile takes a damaged header in the middle of a tar for its end; here it is damage.

    So is a name or another attribute that is larger than a text may be.
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
    """Name and content of each file in a tar that is read as a stream; b"" for foreign endings,
    None for what is too large.

    Raises:
      tarfile.TarError: it is damaged, cut short, or goes on after its end.
    """
    with _open(stream) as tar:
        for member in tar:
            # Kept for seeking, which a stream does not; of a large tar they are many.
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
