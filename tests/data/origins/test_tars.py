import io
import pickle
import tarfile

import pytest

from pea_jax.data.origins import tars
from pea_jax.data.origins.record import MAX_TEXT, TOO_LARGE
from tests.data.photographs import dumped, write_tar


def records(path):
    (shard,) = tars.shards([str(path)])
    # As a process that makes the part of a set is given it.
    return list(pickle.loads(pickle.dumps(shard))())


def faults(path):
    return [(record.name, record.fault) for record in records(path)]


def sample(name, caption="说明"):
    return [(f"{name}.jpg", b"picture"), (f"{name}.json", dumped({"caption": caption}))]


@pytest.mark.parametrize(("mode", "ending"), [("w", "tar"), ("w:gz", "tar.gz")])
def test_samples_are_files_of_one_stem_next_to_each_other(tmp_path, mode, ending):
    members = [
        ("00000/1.JPG", b"one"),
        ("00000/1.json", dumped({"caption": "一", "n": 1})),
        ("00000/1.txt", "壹".encode()),
        ("00000/1.seg.png", b"a mask, not the picture"),
        ("00000/2.webp", b"two"),
        ("00000/2.txt", "二\n".encode()),
        ("two.parts/3.png", b""),
        ("two.parts/3.json", b"\xef\xbb\xbf{}"),
    ]
    first, second, third = records(write_tar(tmp_path / f"t.{ending}", members, mode))
    assert (first.name, first.image) == ("00000/1", b"one")
    assert first.fields == {"caption": "一", "n": 1, "txt": "壹"}
    assert (second.name, second.image, second.fields) == ("00000/2", b"two", {"txt": "二\n"})
    assert (third.name, third.image, third.fields) == ("two.parts/3", b"", {})
    assert {record.shard for record in (first, second, third)} == {"t"}
    assert [record.fault for record in (first, second, third)] == [None] * 3


def test_what_makes_no_sample_is_reported(tmp_path):
    members = [
        *sample("whole"),
        ("no_text.jpg", b"picture"),
        ("no_picture.json", b"{}"),
        ("two.jpg", b"1"),
        ("two.png", b"2"),
        ("two.json", b"{}"),
        ("cut.jpg", b"picture"),
        ("cut.json", b'{"caption": "'),
        ("list.jpg", b"picture"),
        ("list.json", b"[]"),
        ("deep.jpg", b"picture"),
        ("deep.json", b"[" * 100_000),
        ("README", b"no sample"),
        ("._000.jpg", b"of a file system"),
        ("film.mp4", b"no sample of ours"),
        *sample("again"),
        *sample("again"),
    ]
    assert faults(write_tar(tmp_path / "t.tar", members)) == [
        ("whole", None),
        ("no_text", tars.NO_TEXT),
        ("no_picture", tars.NO_PICTURE),
        ("two", tars.SEVERAL),
        ("cut", tars.BAD_JSON),
        ("list", tars.BAD_JSON),
        ("README", tars.STRAY),  # it does not end the sample before it
        ("deep", tars.BAD_JSON),
        ("film", tars.NO_PICTURE),
        ("again", None),
        ("again", None),
    ]


def test_folders_and_long_names_in_a_tar_are_no_matter(tmp_path):
    long = "很" * 90
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in sample(f"folder/{long}"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert faults(path) == [(f"folder/{long}", None)]


def test_what_is_too_large_is_reported_and_not_read(tmp_path, monkeypatch):
    monkeypatch.setitem(tars._LIMITS, "jpg", 1000)
    members = [
        *sample("a"),
        ("text.jpg", b"picture"),
        ("text.json", b" " * (MAX_TEXT - 1) + b"{}"),
        ("picture.jpg", b"x" * 1001),
        ("picture.json", b"{}"),
        ("edge.jpg", b"x" * 1000),
        ("edge.json", b" " * (MAX_TEXT - 2) + b"{}"),
        ("edge.features.json", b" " * (MAX_TEXT + 1)),  # foreign: not asked for
        *sample("z"),
    ]
    assert faults(write_tar(tmp_path / "t.tgz", members, "w:gz")) == [
        ("a", None),
        ("text", TOO_LARGE),
        ("picture", TOO_LARGE),
        ("edge", None),
        ("z", None),
    ]


def test_a_name_that_is_too_large_is_damage(tmp_path):
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
        tar.addfile(tarfile.TarInfo("b" * (MAX_TEXT + 1)))
    assert faults(path) == [("", tars.DAMAGED)]


def test_bad_bytes_stay_in_their_field(tmp_path):
    members = [
        ("1.jpg", b"picture"),
        ("1.json", b'{"caption": "good", "exif": "\xff\xfe"}'),
        ("1.txt", b"\xff"),
    ]
    (record,) = records(write_tar(tmp_path / "t.tar", members))
    assert (record.fault, record.fields["caption"]) == (None, "good")
    for field in ("exif", "txt"):
        with pytest.raises(UnicodeEncodeError):
            record.fields[field].encode()


def test_every_cut_of_a_tar_keeps_the_samples_before_it_and_names_the_tar(tmp_path):
    names = ["a", "b", "c"]
    whole = write_tar(tmp_path / "whole.tar", [part for name in names for part in sample(name)])
    data = whole.read_bytes()
    assert faults(whole) == [(name, None) for name in names]
    block = tarfile.BLOCKSIZE
    end = 12 * block  # of six files, each a header and a block
    assert not data[end:].strip(b"\0")
    for cut in [*range(0, end + 1, 128), end + 1]:
        path = tmp_path / "cut.tar"
        path.write_bytes(data[:cut])
        kept = [(name, None) for name in names if (names.index(name) + 1) * 4 * block <= cut]
        # The content of a json is shorter than its block, and is there before the block ends.
        found = faults(path)
        assert found[-1] == ("", tars.DAMAGED)
        assert found[:-1] in (kept, [(name, None) for name in names[: len(kept) + 1]])
        assert len(found[:-1]) >= len(kept)
    # Both blocks of the end mark, or one: it is whole.
    for cut in (end + block, end + 2 * block):
        path.write_bytes(data[:cut])
        assert faults(path) == [(name, None) for name in names]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:2048] + b"\xff" * 512 + data[2560:],
        lambda data: data + data,
        lambda data: data[:2048] + b"garbage",
    ],
    ids=["header", "two in one", "garbage"],
)
def test_damage_in_a_tar_is_no_end_of_it(tmp_path, damage):
    whole = write_tar(tmp_path / "t.tar", [*sample("a"), *sample("b")])
    whole.write_bytes(damage(whole.read_bytes()))
    found = faults(whole)
    assert found[0] == ("a", None)
    assert found[-1] == ("", tars.DAMAGED)


def test_damage_in_a_compressed_tar_is_reported_too(tmp_path):
    noise = bytes(range(256)) * 40
    members = [part for n in range(50) for part in [(f"{n}.jpg", noise), (f"{n}.txt", b"x")]]
    whole = write_tar(tmp_path / "t.tgz", members, "w:gz")
    data = whole.read_bytes()
    # The header of gzip is 10 bytes and the name.
    for cut in (data[: len(data) // 2], *(data[:size] for size in range(20))):
        whole.write_bytes(cut)
        assert faults(whole)[-1] == ("", tars.DAMAGED)
    broken = bytearray(data)
    broken[len(data) // 2] ^= 255
    whole.write_bytes(broken)
    found = faults(whole)
    assert found[-1] == ("", tars.DAMAGED)
    whole.write_bytes(b"no tar at all" * 100)
    assert faults(whole) == [("", tars.DAMAGED)]


def test_a_tar_that_cannot_be_read_now_is_no_damaged_one(tmp_path):
    path = write_tar(tmp_path / "t.tar", sample("a"))
    (shard,) = tars.shards([str(path)])
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"t\.tar"):
        list(shard())
