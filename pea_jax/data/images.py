"""From an encoded picture to the pixels that training sees."""

import dataclasses
import io
import math
import struct
import zlib

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

#: Only these decoders are given foreign bytes.
FORMATS = ("JPEG", "PNG", "WEBP")

#: A picture of more pixels is refused before it is decoded: 4 bytes a pixel make it 268 MB.
MAX_PIXELS = 1 << 26

#: What Pillow raises on bytes that are not what they say they are.
_BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)
#: Why a row is rejected whose picture is a `CorruptImageError`.
UNREADABLE = "image can't be read"

_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)

#: How to turn a picture upright, by its EXIF orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LYING = (5, 6, 7, 8)


class CorruptImageError(ValueError):
    """These bytes are no picture that can be shown; the message says why, in one line."""


class HugeImageError(CorruptImageError):
    """A picture of more than ``MAX_PIXELS``."""


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except _BOMB as error:
        raise HugeImageError(f"more than {MAX_PIXELS} pixels") from error
    except _BROKEN as error:
        raise CorruptImageError(f"none of {', '.join(FORMATS)} ({len(data)} bytes)") from error
    if image.width * image.height > MAX_PIXELS:
        raise HugeImageError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none or the EXIF block is unreadable.

    A damaged EXIF block, common in the wild, says nothing about the pixels.
    """
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except _BROKEN:
        return 1


def size_of(data: bytes) -> tuple[int, int]:
    """Height and width of a picture as it is shown (EXIF rotation applied), from its header.

    Raises:
      CorruptImageError: the header can't be read, or promises more than ``MAX_PIXELS``.
    """
    return _shown(_open(data))


def _shown(image: Image.Image) -> tuple[int, int]:
    lying = _orientation(image) in _LYING
    return (image.width, image.height) if lying else (image.height, image.width)


def verify(data: bytes) -> tuple[int, int]:
    """Height and width, as `size_of`, of a picture that can be decoded to its end.

    JPEGs are decoded at an eighth of their size: all of their data is read, for less time.

    Raises:
      CorruptImageError: truncated, damaged or foreign data, or more than ``MAX_PIXELS``.
    """
    image = _open(data)
    try:
        size = _shown(image)
        image.draft(None, (1, 1))
        image.load()
    except _BROKEN as error:
        raise CorruptImageError(_reason(error)) from error
    return size


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode: transparent parts on white, 16-bit greys scaled, colour profiles ignored."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16 bits to 8, which turns nearly everything white.
        grey = np.asarray(image).astype(np.int64) * 255 // 65535
        return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


@dataclasses.dataclass(frozen=True)
class View:
    """Which part of a picture is seen, whatever its size; by default the middle.

    Attributes:
      down: how far down the crop lies, of the room that there is: in (0, 1].
      right: likewise, to the right.
      flipped: the picture is mirrored, left to right, and then cropped.
    """

    down: float = 0.5
    right: float = 0.5
    flipped: bool = False


CENTRE = View()


def corner(
    height: int, width: int, target_height: int, target_width: int, view: View = CENTRE
) -> tuple[int, int]:
    """Where the crop lies in the picture that was resized to cover the target: (top, left).

    In whole pixels of the resized picture, as SDXL is told of its crops (arXiv 2307.01952, section
    2.2); where that is flipped, of the flipped picture, whose left is the right of the original.
    """
    if target_height * width >= target_width * height:
        room = 0, target_height * width // height - target_width
    else:
        room = target_width * height // width - target_height, 0
    # Each of the room + 1 places is as likely; the middle of an odd room is rounded up and left.
    top, left = (
        math.ceil(place * (pixels + 1)) - 1
        for place, pixels in zip((view.down, view.right), room, strict=True)
    )
    return top, left


def box(
    height: int, width: int, target_height: int, target_width: int, view: View = CENTRE
) -> tuple[float, float, float, float]:
    """What the crop at `corner` shows of the picture: (left, top, right, bottom), source pixels.

    Resizing this box to the target, and mirroring it where the view is flipped, is to resize the
    picture until it just covers the target and then to crop it, without ever making the resized
    whole (20,000 x 10 would become gigantic).
    """
    scale = min(height / target_height, width / target_width)
    top, left = corner(height, width, target_height, target_width, view)
    right, bottom = (left + target_width) * scale, (top + target_height) * scale
    left, top, right, bottom = left * scale, top * scale, min(right, width), min(bottom, height)
    return (
        (width - right, top, width - left, bottom) if view.flipped else (left, top, right, bottom)
    )


def decode(data: bytes, height: int, width: int, view: View = CENTRE) -> UInt8[np.ndarray, "H W 3"]:
    """Pixels of an encoded picture, resized to cover (height, width) and cropped to them.

    JPEG, PNG and WebP (of an animation the first frame), upright by their EXIF orientation. Grey,
    palette and CMYK become RGB; transparent parts are laid on white. Resampling is bicubic with
    antialiasing; a picture that has the target's size already keeps its exact values, smaller ones
    are enlarged. JPEGs of at least twice the size are scaled down by their decoder first.

    Args:
      data: the whole file.
      height: of the result, pixels.
      width: of the result, pixels.
      view: the part that is kept.

    Raises:
      CorruptImageError: truncated, damaged or foreign data, or more than ``MAX_PIXELS``.
    """
    image = _open(data)
    try:
        orientation = _orientation(image)
        lying = orientation in _LYING
        shown = image.size[::-1] if lying else image.size
        image.draft(None, (height, width) if lying else (width, height))
        image.load()
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        image = _to_rgb(image)
    except _BROKEN as error:
        raise CorruptImageError(_reason(error)) from error
    if image.size != (width, height):
        left, top, right, bottom = box(shown[1], shown[0], height, width, view)
        # The decoder may have scaled it down, and rounded its sides up.
        across, down = image.width / shown[0], image.height / shown[1]
        right, bottom = min(right * across, image.width), min(bottom * down, image.height)
        part = left * across, top * down, right, bottom
        image = image.resize((width, height), Image.Resampling.BICUBIC, box=part, reducing_gap=3.0)
    if view.flipped:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)
