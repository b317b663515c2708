import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pea_jax.data.images import MAX_PIXELS, CorruptImageError, View, box, corner, decode, size_of


def encode(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def smooth(height: int, width: int) -> np.ndarray:
    """A picture without symmetry and with low frequencies only."""
    y, x = (np.arange(height)[:, None] + 0.5) / height, (np.arange(width)[None] + 0.5) / width
    channels = (255 * x + 0 * y, 255 * y + 0 * x, 255 * x * y)
    return np.stack(channels, -1).astype(np.uint8)


def test_a_picture_of_the_right_size_keeps_its_values(rng):
    pixels = rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        np.testing.assert_array_equal(decode(encode(pixels, kind, **options), 24, 40), pixels)


def test_the_middle_is_cut_out():
    tiles = np.zeros((16, 48, 3), np.uint8)
    tiles[:, 16:32] = (10, 200, 30)
    wide, tall = encode(tiles), encode(tiles.transpose(1, 0, 2))
    for data in (wide, tall):
        np.testing.assert_array_equal(decode(data, 16, 16), tiles[:, 16:32])


def coordinates(height: int, width: int) -> np.ndarray:
    """A picture whose red is each pixel's row, and whose green is its column."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(height)[:, None], np.arange(width)
    return pixels


def test_boxes_have_the_target_aspect_and_are_as_large_as_can_be():
    assert box(100, 300, 50, 50) == (100, 0, 200, 100)
    assert box(300, 100, 50, 100) == (0, 125, 100, 175)
    assert box(60, 80, 60, 80) == (0, 0, 80, 60)
    # 100 of 150 columns of the resized picture are left: the last one is as good as the first.
    assert box(100, 300, 50, 50, View(0.5, 1.0)) == (200, 0, 300, 100)
    assert box(100, 300, 50, 50, View(0.5, 1.0, flipped=True)) == (0, 0, 100, 100)


def test_boxes_stay_in_the_picture(rng):
    """Pillow refuses a box that ends a rounding error beyond the picture."""
    for _ in range(2000):
        height, width, *target = (int(side) for side in rng.integers(1, 3000, 4))
        view = View(*(1 - rng.random(2)), flipped=bool(rng.integers(2)))
        left, top, right, bottom = box(height, width, *target, view)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


@pytest.mark.parametrize(
    ("height", "width", "middle"),
    [
        *((100, 300, (0, 50)), (300, 100, (50, 0)), (25, 26, (0, 1)), (60, 60, (0, 0))),
        # An odd excess is cut less on the left. 370 x 559 becomes 50 x 75.5: 25 columns too many.
        *((50, 55, (0, 2)), (370, 559, (0, 12))),
    ],
)
def test_a_crop_is_reported_in_pixels_of_the_resized_picture(height, width, middle):
    """SDXL learnt what a corner means from pictures that were resized first and then cropped."""
    assert corner(height, width, 50, 50) == middle


def test_every_corner_that_there_is_is_as_likely(rng):
    """A picture of 8 x 13, cropped to 8 x 8, has six places from 0 to 5."""
    drawn = [corner(8, 13, 8, 8, View(*(1 - rng.random(2)))) for _ in range(6000)]
    counts = np.bincount([left for _, left in drawn], minlength=6)
    assert {top for top, _ in drawn} == {0}
    assert len(counts) == 6
    assert counts.min() > 880
    assert counts.max() < 1120
    assert corner(8, 13, 8, 8, View(1e-9, 1e-9)) == (0, 0)
    assert corner(8, 13, 8, 8, View(1.0, 1.0)) == (0, 5)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(("height", "width"), [(20, 33), (33, 20), (20, 20)])
def test_a_corner_is_where_the_pixels_begin(rng, height, width, flipped):
    """A picture that is not resized, whose pixels encode their coordinates."""
    pixels = coordinates(height, width)
    for _ in range(20):
        view = View(*(1 - rng.random(2)), flipped=flipped)
        top, left = corner(height, width, 20, 20, view)
        whole = pixels[:, ::-1] if flipped else pixels
        shown = decode(encode(pixels), 20, 20, view)
        np.testing.assert_array_equal(shown, whole[top : top + 20, left : left + 20])


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("JPEG", {"quality": 100})])
def test_a_corner_is_that_of_the_resized_picture(rng, flipped, kind, options):
    """After halving, column x shows the source's columns 2 x and 2 x + 1."""
    # JPEG's decoder halves it itself; neither red nor green is ever cut off at 255.
    pixels = coordinates(96, 224)
    for _ in range(8):
        view = View(*(1 - rng.random(2)), flipped=flipped)
        top, left = corner(96, 224, 48, 64, view)
        assert top == 0
        shown = decode(encode(pixels, kind, **options), 48, 64, view).astype(int)
        columns = 2 * np.arange(left, left + 64) + 0.5
        columns = 223 - columns if flipped else columns
        inner = slice(2, -2)  # beyond the picture's border there is nothing to interpolate with
        assert abs(shown[inner, inner, 1] - columns[inner]).max() <= 2
        assert abs(shown[inner, inner, 0] - (2 * np.arange(48)[inner, None] + 0.5)).max() <= 2


@pytest.mark.parametrize(("height", "width"), [(64, 64), (200, 300), (9, 9)])
def test_a_resized_picture_shows_the_same(height, width):
    result = decode(encode(smooth(height, width)), 32, 32)
    covering = smooth(32, 32 * width // height)
    left = (covering.shape[1] - 32) // 2
    difference = np.abs(result.astype(int) - covering[:, left : left + 32])
    # Half a pixel of an enlarged picture's border has no neighbour to be mixed with.
    assert difference[4:-4, 4:-4].max() <= 8


def test_extreme_shapes_cost_no_giant_and_one_pixel_is_a_picture():
    band = np.zeros((10, 20_000, 3), np.uint8)
    band[:, 9_990:10_010] = 255
    np.testing.assert_array_equal(decode(encode(band), 64, 64)[:, 4:-4], 255)
    dot = np.full((1, 1, 3), (1, 2, 3), np.uint8)
    assert (decode(encode(dot), 8, 8) == (1, 2, 3)).all()


def test_a_jpeg_scaled_by_its_decoder_keeps_every_detail_of_the_result(rng):
    blocks = rng.integers(0, 256, (64, 96), dtype=np.uint8)
    data = encode(np.kron(blocks, np.ones((4, 4), np.uint8)), "JPEG", quality=95)
    difference = np.abs(decode(data, 64, 64).astype(int) - blocks[:, 16:80, None])
    assert difference.mean() < 8


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_exif_orientation_is_turned_upright(kind):
    upright = smooth(32, 48)
    options = {} if kind == "PNG" else {"quality": 100}
    # What a camera stores for each orientation, so that turning it upright gives the scene.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright[:, ::-1].transpose(1, 0, 2),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: upright[::-1].transpose(1, 0, 2),
    }
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(np.ascontiguousarray(pixels), kind, exif=exif, **options)
        assert size_of(data) == (32, 48), orientation
        difference = np.abs(decode(data, 32, 48).astype(int) - upright)
        assert difference.max() <= (0 if kind == "PNG" else 12), orientation


def test_every_mode_becomes_rgb():
    grey = Image.fromarray(np.full((8, 8), 100, np.uint8))
    deep = Image.fromarray(np.full((8, 8), 100 * 257, np.uint16))
    red = Image.new("RGB", (8, 8), (200, 0, 0))
    cases = {
        "L": (encode(grey), (100, 100, 100)),
        "1": (encode(grey.convert("1", dither=Image.Dither.NONE)), (0, 0, 0)),
        "I;16": (encode(deep), (100, 100, 100)),
        "P": (encode(red.convert("P", palette=Image.Palette.ADAPTIVE)), (200, 0, 0)),
        "CMYK": (encode(red.convert("CMYK"), "JPEG", quality=100), (200, 0, 0)),
    }
    for mode, (data, colour) in cases.items():
        assert np.abs(decode(data, 8, 8).astype(int) - colour).max() <= 2, mode


def test_transparent_parts_are_white():
    half = np.zeros((8, 8, 4), np.uint8)
    half[..., 0] = 200
    half[:4, :, 3] = 255
    half[4, :, 3] = 51
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.paste(1, (0, 4, 8, 8))
    rgb_with_key = Image.new("RGB", (8, 8), (1, 2, 3))
    for kind in ("PNG", "WEBP"):
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        result = decode(encode(half, kind, **options), 8, 8)
        assert (result[:4] == (200, 0, 0)).all()
        assert (result[4] == (244, 204, 204)).all()
        assert (result[5:] == 255).all()
    result = decode(encode(palette, transparency=1), 8, 8)
    assert (result[:4] == (10, 20, 30)).all()
    assert (result[4:] == 255).all()
    assert (decode(encode(rgb_with_key, transparency=(1, 2, 3)), 8, 8) == 255).all()


def test_what_cannot_be_read_is_refused_with_a_reason():
    whole = encode(smooth(64, 64), "JPEG")
    cases = {
        "truncated": whole[:-100],
        "none of": b"",
        "none of JPEG, PNG, WEBP": b"<html>404</html>",
        "none of JPEG": encode(smooth(8, 8), "GIF"),
    }
    for reason, data in cases.items():
        with pytest.raises(CorruptImageError, match=reason):
            decode(data, 32, 32)


@pytest.mark.parametrize("side", [8_300, 10_000, 60_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_by_its_header(side):
    # The pixels are not there: who began to decode would say "truncated".
    def chunk(name: bytes, body: bytes) -> bytes:
        checked = name + body
        return struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    assert side**2 > MAX_PIXELS
    for read in (lambda: decode(data, 8, 8), lambda: size_of(data)):
        with pytest.raises(CorruptImageError, match=f"more than {MAX_PIXELS} pixels"):
            read()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damage_of_any_kind_is_a_corrupt_image_error():
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = smooth(40, 56)
    files = [encode(picture, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP")]
    files.append(encode(Image.fromarray(picture).convert("P"), transparency=3))
    chance = random.Random(0)
    reasons = []
    for _ in range(1500):
        data = bytearray(chance.choice(files))
        for _ in range(chance.choice((1, 4, 20))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        try:
            decode(bytes(data), 16, 16)
        except CorruptImageError as error:
            reasons.append(str(error))
    assert 50 < len(reasons) < 1450
    assert all(reasons)
    assert not any("\n" in reason for reason in reasons)
