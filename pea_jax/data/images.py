"""Decoding, resizing and cropping of images."""

import dataclasses
import io
import math
import struct
import zlib

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

#: The only decoders for untrusted bytes.
FORMATS = ("JPEG", "PNG", "WEBP")

#: Larger images are refused before decoding; at 4 bytes a pixel, this is 268 MB.
MAX_PIXELS = 1 << 26

#: Errors of Pillow on damaged data.
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError)
_BROKEN += (OverflowError, struct.error, zlib.error)

#: The reason for rejecting a row on a `CorruptImageError`.
UNREADABLE = "image can't be read"

_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)

#: EXIF orientation -> operation that turns an image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: EXIF orientations that swap height and width.
_TRANSPOSED = (5, 6, 7, 8)


class CorruptImageError(ValueError):
    """The image cannot be decoded; the message is one line."""


class HugeImageError(CorruptImageError):
    """The image has more than ``MAX_PIXELS``."""


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
    """The EXIF orientation; 1 (upright) if there is none.

    It is also 1 if the EXIF block is damaged, which is common and does not affect the pixels.
    """
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except _BROKEN:
        return 1


def size_of(data: bytes) -> tuple[int, int]:
    """Height and width of an image after EXIF rotation, from its header.

    Raises:
      CorruptImageError: the header is unreadable, or has more than ``MAX_PIXELS``.
    """
    return _upright_size(_open(data))


def _upright_size(image: Image.Image) -> tuple[int, int]:
    return image.size if _orientation(image) in _TRANSPOSED else image.size[::-1]


def verify(data: bytes) -> tuple[int, int]:
    """Height and width, as `size_of`, after decoding the whole image.

    JPEGs are decoded at an eighth of their size, which reads all of their data in less time.

    Raises:
      CorruptImageError: truncated, damaged or foreign data, or more than ``MAX_PIXELS``.
    """
    image = _open(data)
    try:
        size = _upright_size(image)
        image.draft(None, (1, 1))
        image.load()
    except _BROKEN as error:
        raise CorruptImageError(_reason(error)) from error
    return size


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB: transparency on white, 16-bit greys scaled, colour profiles ignored."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):
        # Pillow clips 16 bits to 8, which turns nearly everything white.
        grey = np.asarray(image).astype(np.int64) * 255 // 65535
        return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


@dataclasses.dataclass(frozen=True)
class View:
    """Crop position and flip for an image of any size; by default the centre.

    Attributes:
      down: vertical crop position as a fraction of the available range, in (0, 1].
      right: horizontal crop position, likewise.
      flipped: mirror the image left to right before cropping.
    """

    down: float = 0.5
    right: float = 0.5
    flipped: bool = False


CENTRE = View()


def corner(
    height: int, width: int, target_height: int, target_width: int, view: View = CENTRE
) -> tuple[int, int]:
    """Top and left of the crop in the image that is resized to cover the target.

    In whole pixels of the resized image, as in SDXL's crop conditioning (arXiv 2307.01952, section
    2.2). For a flipped view, they refer to the flipped image.
    """
    if target_height * width >= target_width * height:
        excess = 0, target_height * width // height - target_width
    else:
        excess = target_width * height // width - target_height, 0
    # All excess + 1 positions are equally likely. The centre of an odd excess rounds to top left.
    top, left = (
        math.ceil(place * (pixels + 1)) - 1
        for place, pixels in zip((view.down, view.right), excess, strict=True)
    )
    return top, left


def box(
    height: int, width: int, target_height: int, target_width: int, view: View = CENTRE
) -> tuple[float, float, float, float]:
    """The crop at `corner` in pixels of the original image: (left, top, right, bottom).

    Resizing this box to the target is equivalent to resizing the image until it covers the target
    and then cropping it. It avoids the resized image, which is gigantic for 20,000 x 10 pixels. The
    caller mirrors the result of a flipped view.
    """
    scale = min(height / target_height, width / target_width)
    top, left = corner(height, width, target_height, target_width, view)
    right, bottom = (left + target_width) * scale, (top + target_height) * scale
    left, top, right, bottom = left * scale, top * scale, min(right, width), min(bottom, height)
    return (
        (width - right, top, width - left, bottom) if view.flipped else (left, top, right, bottom)
    )


def decode(data: bytes, height: int, width: int, view: View = CENTRE) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes an image, resizes it to cover (height, width) and crops it.

    Formats are JPEG, PNG and WebP (the first frame of an animation). EXIF orientation is applied.
    Grey, palette and CMYK images become RGB; transparency is composited on white. Resampling is
    bicubic with antialiasing. Smaller images are enlarged, and images of the target size keep their
    exact values. The JPEG decoder scales images of at least twice the size down first.

    Args:
      data: the whole file.
      height: of the result, pixels.
      width: of the result, pixels.
      view: crop and flip.

    Raises:
      CorruptImageError: truncated, damaged or foreign data, or more than ``MAX_PIXELS``.
    """
    image = _open(data)
    try:
        orientation = _orientation(image)
        transposed = orientation in _TRANSPOSED
        original = image.size[::-1] if transposed else image.size
        image.draft(None, (height, width) if transposed else (width, height))
        image.load()
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        image = _to_rgb(image)
    except _BROKEN as error:
        raise CorruptImageError(_reason(error)) from error
    if image.size != (width, height):
        left, top, right, bottom = box(original[1], original[0], height, width, view)
        # The decoder may have scaled the image down and rounded its sides up.
        across, down = image.width / original[0], image.height / original[1]
        right, bottom = min(right * across, image.width), min(bottom * down, image.height)
        crop = left * across, top * down, right, bottom
        image = image.resize((width, height), Image.Resampling.BICUBIC, box=crop, reducing_gap=3.0)
    if view.flipped:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)
