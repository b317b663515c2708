import os

import pytest

from pea_jax.data.origins import picture
from pea_jax.data.origins.record import NO_FILE, OUTSIDE, TOO_LARGE


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "table" / "images").mkdir(parents=True)
    for name in ("secret.jpg", "table/images/0.jpg"):
        (tmp_path / name).write_bytes(b"picture")
    return tmp_path / "table"


def test_paths_lead_to_regular_files_below_the_folder(folder):
    os.mkfifo(folder / "pipe.jpg")
    (folder / "link.jpg").symlink_to("images/0.jpg")
    (folder / "leak.jpg").symlink_to("../secret.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    found = {
        "images/0.jpg": b"picture",
        "images/../images/0.jpg": b"picture",
        str(folder / "images/0.jpg"): b"picture",
        "link.jpg": b"picture",
        "leak.jpg": OUTSIDE,
        "../secret.jpg": OUTSIDE,
        "/dev/zero": OUTSIDE,
        str(folder.parent / "secret.jpg"): OUTSIDE,
        "pipe.jpg": NO_FILE,
        "images": NO_FILE,
        "loop.jpg": NO_FILE,
        "a\0b": NO_FILE,
        "\ud800": NO_FILE,
    }
    results = {path: picture.read(path, [folder]) for path in found}
    assert {path: fault or data for path, (data, fault) in results.items()} == found
    # Files of several folders; relative paths are of the first.
    both = [folder / "images", folder.parent]
    assert picture.read("0.jpg", both)[0] == b"picture"
    assert picture.read(str(folder.parent / "secret.jpg"), both)[0] == b"picture"
    assert picture.read("secret.jpg", both) == (None, NO_FILE)


def test_a_picture_that_is_too_large_is_reported(folder, monkeypatch):
    monkeypatch.setattr(picture, "MAX_PICTURE", 7)
    for cell in ("images/0.jpg", b"picture"):
        assert picture.read(cell, [folder]) == (b"picture", None)
    (folder / "images/0.jpg").write_bytes(b"pictures")
    for cell in ("images/0.jpg", b"pictures"):
        assert picture.read(cell, [folder]) == (None, TOO_LARGE)
