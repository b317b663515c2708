"""Contact sheets: images tiled or in a table, with captions in the shipped font."""

import functools
import io
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from pea_jax.tinyworld import FONT

_PAPER, _INK, _FAINT = (255, 255, 255), (24, 24, 28), (120, 120, 128)
_GAP = 6
#: Small images are enlarged to this many pixels, to make room for a caption.
_SIDE = 128


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The font of the package, `size` pixels high."""
    return ImageFont.truetype(FONT, size)


def writable(text: str) -> bool:
    """Whether the font has every glyph of `text`; it draws boxes for missing ones."""
    return all(_has_glyph(char) for char in text)


@functools.cache
def _has_glyph(char: str) -> bool:
    face = font(16)
    return char == " " or bytes(face.getmask(char)) != bytes(face.getmask("\U0010ffff"))


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def tile(
    images: UInt8[np.ndarray, "N H W 3"],
    captions: Sequence[str] = (),
    *,
    columns: int | None = None,
) -> Image.Image:
    """Images in reading order.

    Args:
      images: at least one.
      captions: one per image, wrapped below it; or none.
      columns: images in a row; None makes about a square.

    Raises:
      ValueError: no image, a wrong number of captions, or a caption that is not `writable`.
    """
    _check(list(images), {"captions": (captions, len(images))}, captions)
    columns = columns or math.ceil(math.sqrt(len(images)))
    pictures = [_enlarged(image) for image in images]
    width, height = pictures[0].size
    face = _face(width)
    wrapped = [_wrap(caption, face, width) for caption in captions]
    below = _line(face) * max((len(lines) for lines in wrapped), default=0)
    rows = math.ceil(len(images) / columns)
    sheet = _sheet(columns * (width + _GAP), rows * (height + below + _GAP))
    draw = ImageDraw.Draw(sheet)
    for index, picture in enumerate(pictures):
        x = _GAP + index % columns * (width + _GAP)
        y = _GAP + index // columns * (height + below + _GAP)
        sheet.paste(picture, (x, y))
        for number, part in enumerate(wrapped[index] if captions else ()):
            draw.text((x, y + height + (number + 0.5) * _line(face)), part, _INK, face, "lm")
    return sheet


def table(
    rows: Sequence[Sequence[UInt8[np.ndarray, "H W 3"] | None]],
    *,
    headers: Sequence[str],
    captions: Sequence[Sequence[str]],
) -> Image.Image:
    """Images in rows and columns, headers above, captions on the left.

    Args:
      rows: of images, all of one size; None leaves a cell empty, and rows may end early.
      headers: one per column.
      captions: one or more lines per row, the first in black, the others in grey.

    Raises:
      ValueError: no image, images of different sizes, a number of captions or headers that is not
        that of rows or columns, or text that is not `writable`.
    """
    cells = [cell for row in rows for cell in row if cell is not None]
    counts = {
        "headers": (headers, max((len(row) for row in rows), default=0)),
        "captions": (captions, len(rows)),
    }
    parts = [part for lines in captions for part in lines]
    _check(cells, counts, [*headers, *parts])
    width, height = _enlarged(cells[0]).size
    face = _face(width)
    left = math.ceil(max(face.getlength(part) for part in parts)) + 2 * _GAP
    top = _line(face) + _GAP
    # A row is as high as its image or its captions; both are centred.
    step = max(height, _line(face) * max(len(lines) for lines in captions)) + _GAP
    sheet = _sheet(left + len(headers) * (width + _GAP), top + len(rows) * step)
    draw = ImageDraw.Draw(sheet)
    for column, header in enumerate(headers):
        middle = left + _GAP + column * (width + _GAP) + width / 2
        draw.text((middle, top / 2), header, _INK, face, "mm")
    for index, (row, lines) in enumerate(zip(rows, captions, strict=True)):
        y = top + _GAP + index * step + (step - _GAP - height) // 2
        for number, part in enumerate(lines):
            middle = y + height / 2 + (number - (len(lines) - 1) / 2) * _line(face)
            draw.text((_GAP, middle), part, _FAINT if number else _INK, face, "lm")
        for column, cell in enumerate(row):
            if cell is not None:
                sheet.paste(_enlarged(cell), (left + _GAP + column * (width + _GAP), y))
    return sheet


def _enlarged(image: UInt8[np.ndarray, "H W 3"]) -> Image.Image:
    """At least `_SIDE` pixels wide, by a whole factor, pixels staying sharp."""
    factor = math.ceil(_SIDE / image.shape[1])
    picture = Image.fromarray(np.asarray(image))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BOX)


def _sheet(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width + _GAP, height + _GAP), _PAPER)


def _face(width: int) -> ImageFont.FreeTypeFont:
    return font(max(12, min(20, width // 9)))


def _line(face: ImageFont.FreeTypeFont) -> int:
    return round(face.size * 1.4)


def _wrap(text: str, face: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines no wider than `width`, broken at spaces, or anywhere in text that has none."""
    pieces = text.split(" ")
    space = " "
    if any(face.getlength(piece) > width for piece in pieces):
        pieces, space = list(text), ""
    lines = [pieces[0]]
    for piece in pieces[1:]:
        longer = lines[-1] + space + piece
        if face.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(piece)
    return lines


def _check(
    cells: Sequence[np.ndarray], counts: dict[str, tuple[Sequence, int]], texts: Sequence[str]
) -> None:
    if len(cells) == 0:
        raise ValueError("expected at least one image, got none")
    shapes = {cell.shape for cell in cells}
    if len(shapes) > 1:
        raise ValueError(f"expected images of one size, got {sorted(shapes)}")
    for name, (items, expected) in counts.items():
        if items and len(items) != expected:
            raise ValueError(f"{name}: expected {expected}, got {len(items)}")
    boxes = [text for text in texts if not writable(text)]
    if boxes:
        raise ValueError(f"the shipped font has no glyphs for all of {boxes}")
