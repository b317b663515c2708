"""Buckets, languages and views: which row is where in which batch, seen through the loader."""

import contextlib
import io
import itertools
import json
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from pea_jax.data import images
from pea_jax.data.buckets import BucketWarning
from pea_jax.data.read import plan
from pea_jax.data.read.loader import BadImagesError, BadImageWarning, make_loader
from tests.data import sets

WIDE, SQUARE, TALL = (8, 16), (8, 8), (16, 8)
BUCKETS = ((*WIDE, 0.6), (*SQUARE, 0.3), (*TALL, 0.1))

#: Pictures of aspects near those of the buckets, none of them of a bucket's own size.
NEAR = {WIDE: (9, 17), SQUARE: (12, 11), TALL: (40, 22)}

#: Rows of each kind; batches of 2 native and 4 parallel rows never divide them.
COUNTS = {
    ("zh", True, WIDE): 5,
    ("zh", True, SQUARE): 3,
    ("zh", True, TALL): 7,
    ("ja", True, WIDE): 3,
    ("ja", True, SQUARE): 4,
    ("zh", False, WIDE): 11,
    ("zh", False, SQUARE): 5,
    ("zh", False, TALL): 4,
    ("ja", False, WIDE): 7,
    ("ja", False, SQUARE): 4,
    ("ja", False, TALL): 6,
}


def kinds_of(counts):
    """Row number -> (language, native, bucket)."""
    return dict(
        enumerate(kind for kind, count in counts.items() for _ in range(count)),
    )


KINDS = kinds_of(COUNTS)


def build(folder, counts=None, damaged=()):
    counts = COUNTS if counts is None else counts
    near = {(*kind[:2], NEAR[kind[2]]): count for kind, count in counts.items()}
    return sets.of_kinds(folder, near, damaged)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return build(tmp_path_factory.mktemp("kinds"))


@pytest.fixture
def load():
    """Makes loaders of 2 native and 4 parallel rows a step, and closes them."""
    with contextlib.ExitStack() as stack:

        def make(source, **changes):
            arguments = {
                "native_batch": 2,
                "parallel_batch": 4,
                "seed": 5,
                "native_tokenizer": sets.tokenize,
                "english_tokenizer": sets.tokenize,
                "image_size": 8,
                "buckets": BUCKETS,
                "languages": ["zh", "ja"],
            }
            loader = make_loader(source, **(arguments | changes))
            return stack.enter_context(contextlib.closing(loader))

        yield make


def take(loader, steps):
    return list(itertools.islice(loader, steps))


def numbers(batch, part):
    return [sets.number_of(pixels) for pixels in batch[part]["pixels"]]


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert {part: list(arrays) for part, arrays in one.items()} == {
            part: list(arrays) for part, arrays in other.items()
        }
        for part, arrays in one.items():
            for name, array in arrays.items():
                np.testing.assert_array_equal(array, other[part][name])


def assert_epochs(stream, rows):
    """Check that every epoch has all rows once, in another order each time."""
    epochs = [stream[start : start + len(rows)] for start in range(0, len(stream), len(rows))]
    whole = [epoch for epoch in epochs if len(epoch) == len(rows)]
    assert len(whole) >= 2
    for epoch in whole:
        assert sorted(epoch) == sorted(rows)
    assert len(set(epochs[-1])) == len(epochs[-1])
    return whole


WEIGHTS = [(), (2.0, 1.0)]
EVERYTHING = {"crop": "random", "random_flip": True, "language_weights": (2.0, 1.0)}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_batch_has_one_bucket_and_only_rows_of_it(source, load, weights):
    loader = load(source, language_weights=weights)
    for step, batch in enumerate(take(loader, 40)):
        height, width = loader.size(step)
        for part, count in (("native", 2), ("parallel", 4)):
            assert batch[part]["pixels"].shape == (count, height, width, 3)
            assert batch[part]["time_ids"][:, 4:].tolist() == [[height, width]] * count
            for number, language in zip(numbers(batch, part), batch[part]["language"], strict=True):
                found = (loader.languages[language], part == "native", (height, width))
                assert KINDS[number] == found
            sizes = [tuple(size) for size in batch[part]["time_ids"][:, :2].tolist()]
            assert sizes == [NEAR[height, width]] * count


def test_buckets_come_as_often_as_configured_and_alike_on_all_hosts(source, load):
    hosts = [
        load(source, native_batch=4, shard_index=index, shard_count=count)
        for count in (1, 2, 4)
        for index in range(count)
    ]
    drawn = [[host.size(step) for step in range(10_000)] for host in hosts]
    assert all(each == drawn[0] for each in drawn)
    counts = Counter(drawn[0])
    for height, width, probability in BUCKETS:
        assert abs(counts[height, width] - 10_000 * probability) <= 1
    other = load(source, seed=6)
    assert [other.size(step) for step in range(100)] != drawn[0][:100]


@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_batch_that_one_would_make(source, load, hosts, changes):
    changes = {"native_batch": 4, "parallel_batch": 8, **changes}
    alone = take(load(source, **changes), 15)
    shares = [
        take(load(source, **changes, shard_index=host, shard_count=hosts), 15)
        for host in range(hosts)
    ]
    joined = [
        {
            part: {
                name: np.concatenate([share[part][name] for share in step])
                for name in step[0][part]
            }
            for part in step[0]
        }
        for step in zip(*shares, strict=True)
    ]
    assert_same(joined, alone)


@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_row_is_seen_once_an_epoch_of_its_bucket(source, load, weights, hosts):
    """With weights, per bucket and language: rare kinds lose no rows."""
    loaders = [
        load(source, language_weights=weights, shard_index=host, shard_count=hosts)
        for host in range(hosts)
    ]
    streams = defaultdict(list)
    for step in range(160):
        for part in ("native", "parallel"):
            for loader in loaders:
                for key in loader.keys(step)[part]:
                    number = int(key.removeprefix("row"))
                    language, native, bucket = KINDS[number]
                    assert native == (part == "native")
                    assert bucket == loaders[0].size(step)
                    streams[part, bucket, language if weights else ""].append(number)
    assert len(streams) == (11 if weights else 6)
    orders = {}
    for (part, bucket, language), stream in streams.items():
        rows = [
            number
            for number, kind in KINDS.items()
            if kind[1:] == (part == "native", bucket) and language in ("", kind[0])
        ]
        orders[part, bucket, language] = assert_epochs(stream, rows)
    # Each is shuffled anew, and each stream by itself.
    assert len({tuple(epoch) for epoch in orders["parallel", WIDE, "zh" if weights else ""]}) > 5
    if weights:
        ranks = [
            tuple(tuple(sorted(epoch).index(row) for row in epoch) for epoch in order[:2])
            for order in (orders["native", TALL, "zh"], orders["parallel", WIDE, "ja"])
        ]
        assert ranks[0] != ranks[1]


def test_weighted_languages_come_as_often_as_they_weigh(source, load):
    """In every bucket, part and step, to the nearest whole rows, whatever rows a language has."""
    loader = load(source, language_weights=(3.0, 1.0), native_batch=3, parallel_batch=8)
    counts = defaultdict(list)
    for step in range(150):
        bucket = loader.size(step)
        for part, keys in loader.keys(step).items():
            kinds = [KINDS[int(key.removeprefix("row"))] for key in keys]
            counts[part, bucket].append(sum(kind[0] == "zh" for kind in kinds))
    for (part, bucket), each in counts.items():
        size = 3 if part == "native" else 8
        # No native Japanese row is tall: Chinese ones take all.
        share = size if (part, bucket) == ("native", TALL) else 0.75 * size
        assert set(each) <= {int(np.floor(share)), int(np.ceil(share))}
        drift = np.abs(np.cumsum(each) - share * np.arange(1, len(each) + 1))
        assert drift.max() < 1


def test_without_weights_a_language_comes_as_often_as_it_has_rows(source, load):
    """One stream over all: an epoch has each row once."""
    loader = load(source, buckets=(), native_batch=0, parallel_batch=37)
    languages = Counter(int(number) for number in next(loader)["parallel"]["language"])
    assert languages == {0: 20, 1: 17}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_from_any_step_as_if_undisturbed(source, load, workers):
    undisturbed = load(source, **EVERYTHING)
    states, batches = [], []
    for _ in range(14):
        states.append(json.dumps(undisturbed.get_state()))
        batches.append(next(undisturbed))
    assert len({batch["native"]["pixels"].shape for batch in batches}) == 3
    for step in (0, 1, 6, 13) if workers == 0 else (6,):
        fresh = load(source, workers=workers, **EVERYTHING)
        fresh.set_state(json.loads(states[step]))
        assert_same(take(fresh, 14 - step), batches[step:])
    assert len(states[-1]) < 350


def test_a_state_of_another_plan_is_refused(source, load):
    state = load(source, **EVERYTHING).get_state()
    others = {
        "buckets .*, here None": {"buckets": ()},
        r"buckets .*, here \[\[8, 16, 0\.5\], \[8, 8, 0\.5\]\]": {
            "buckets": ((*WIDE, 0.5), (*SQUARE, 0.5))
        },
        "crop 'random', here None": {"crop": "centre"},
        "random_flip True, here None": {"random_flip": False},
        "weights .*, here None": {"language_weights": ()},
        r"weights .*, here \[\['zh', 'ja'\], \[1\.0, 1\.0\]\]": {"language_weights": (1.0, 1.0)},
        r"weights .*, here \[\['ja', 'zh'\], \[2\.0, 1\.0\]\]": {"languages": ["ja", "zh"]},
    }
    for message, changes in others.items():
        loader = load(source, **(EVERYTHING | changes))
        with pytest.raises(ValueError, match=message):
            loader.set_state(state)
    # Nor does one without them fit a plan that has them.
    with pytest.raises(ValueError, match=r"crop None, here 'random'"):
        load(source, **EVERYTHING).set_state(load(source).get_state())


def test_a_bucket_that_a_part_lacks_loses_no_row(load, tmp_path):
    counts = {kind: count for kind, count in COUNTS.items() if kind[1:] != (True, TALL)}
    source = build(tmp_path, counts)
    with pytest.warns(BucketWarning) as caught:
        loader = load(source)
    assert [str(one.message) for one in caught] == [
        "bucket 16x8 has no native rows: it is left out, and its 10 other rows go to the nearest "
        "aspects that remain"
    ]
    assert loader._fetch.plan.buckets == BUCKETS[:2]
    sizes = Counter(loader.size(step) for step in range(9000))
    assert sizes == {WIDE: 6000, SQUARE: 3000}
    kinds, seen = kinds_of(counts), []
    rows = [number for number, kind in kinds.items() if not kind[1] and kind[2] != WIDE]
    for step in range(60):
        if loader.size(step) == SQUARE:
            seen += [int(key.removeprefix("row")) for key in loader.keys(step)["parallel"]]
    assert_epochs(seen, rows)


def test_a_bucket_with_fewer_rows_than_a_step_takes_is_reported(source, load):
    with pytest.warns(BucketWarning) as caught:
        load(source, parallel_batch=12)
    assert [str(one.message) for one in caught] == [
        "batches of some buckets hold a row more than once: 8x8 has 9 parallel rows and a step "
        "takes 12; 16x8 has 10 parallel rows and a step takes 12"
    ]


def test_a_bad_row_is_replaced_by_one_of_its_stream(load, tmp_path):
    bad = [number for number, kind in KINDS.items() if kind == ("zh", True, TALL)][1:4]
    source, whole = build(tmp_path, damaged=bad), build(tmp_path / "whole")
    changes = {"max_bad": 3, "language_weights": (1.0, 1.0)}
    with pytest.warns(BadImageWarning):
        batches = take(load(source, **changes), 60)
    stand_ins = Counter()
    for batch, other in zip(batches, take(load(whole, **changes), 60), strict=True):
        for part in batch:
            for number, original in zip(numbers(batch, part), numbers(other, part), strict=True):
                assert KINDS[number] == KINDS[original]
                assert number not in bad
                assert number == original or original in bad
                stand_ins[number != original] += 1
    assert stand_ins[True] > 3


def test_a_stream_without_a_readable_row_takes_others_of_its_part(load, tmp_path):
    """A long run does not end because of one bad row in a rare bucket."""
    bad = [number for number, kind in KINDS.items() if kind == ("zh", True, TALL)]
    source = build(tmp_path, damaged=bad)
    with pytest.warns(BadImageWarning):
        batches = take(load(source, max_bad=len(bad), language_weights=(1.0, 1.0)), 40)
    tall = [batch for batch in batches if batch["native"]["pixels"].shape[1:3] == TALL]
    assert len(tall) >= 2
    for batch in tall:
        assert all(KINDS[number][1] and number not in bad for number in numbers(batch, "native"))
    loader = load(source, max_bad=len(bad) - 1, language_weights=(1.0, 1.0))
    with (
        pytest.warns(BadImageWarning),
        pytest.raises(BadImagesError, match=f"7 of {len(KINDS)} images"),
    ):
        take(loader, 40)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buckets": ((8, 16, 0.0),)}, "data.buckets: expected (height, width, probability)"),
        (
            {"buckets": ((8, 8, 1.0), (16, 16, 1.0))},
            "data.buckets: expected one bucket of an aspec",
        ),
        ({"crop": "center"}, "data.crop: expected centre or random, got 'center'"),
        (
            {"language_weights": (1.0,)},
            "data.language_weights: expected none or 2 positive numbers",
        ),
        ({"language_weights": (1.0, 0.0)}, "data.language_weights: expected none or 2 positive"),
        ({"languages": ["zh", "zh"]}, "data.languages: expected one or more, each once"),
        ({"languages": []}, "data.languages: expected one or more, each once, got ()"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(source, load, changes, message):
    with pytest.raises(ValueError, match="expected") as error:
        load(source, **changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_language_with_a_weight_has_rows(load, tmp_path):
    counts = {kind: count for kind, count in COUNTS.items() if kind[:2] != ("ja", True)}
    source = build(tmp_path, counts)
    load(source, language_weights=(1.0, 1.0))  # Japanese ones are parallel all
    message = r"languages \['ja'\] have a weight, but no native rows"
    with pytest.raises(ValueError, match=message):
        load(source, language_weights=(1.0, 1.0), parallel_batch=0)
    load(source, parallel_batch=0)


def coordinates(folder, height, width, count=6):
    """A set whose pictures' red is each pixel's row, and green its column."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(height)[:, None], np.arange(width)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    sides = {"image": file.getvalue(), "height": height, "width": width}
    made = [sets.row(number, **sides) for number in range(count)]
    return sets.Source(sets.build(folder, "set", {"train": [lambda: made]}), "train")


@pytest.mark.parametrize("flip", [False, True])
def test_time_ids_of_random_crops_are_those_of_the_pixels(load, tmp_path, flip):
    """24 x 40 pictures in a bucket of 24 x 24 are not resized, so that pixels show their place."""
    source = coordinates(tmp_path, 24, 40)
    changes = {"native_batch": 0, "parallel_batch": 2, "languages": ["zh"]}
    changes |= {"crop": "random", "random_flip": flip, "buckets": ((24, 24, 1.0),)}
    batches = take(load(source, **changes), 100)
    lefts, flips = Counter(), Counter()
    for batch in batches:
        for pixels, time_ids in zip(
            *(batch["parallel"][n] for n in ("pixels", "time_ids")), strict=True
        ):
            height, width, top, left, *target = time_ids.tolist()
            assert (height, width, top, *target) == (24, 40, 0, 24, 24)
            columns = pixels[0, :, 1].astype(int)
            flipped = columns[0] > columns[-1]
            # The corner refers to the flipped picture, whose first column is 39.
            first = 39 - columns[0] if flipped else columns[0]
            assert first == left
            assert (np.diff(columns) == (-1 if flipped else 1)).all()
            lefts[left] += 1
            flips[flipped] += 1
    assert set(lefts) == set(range(17))
    assert flips[True] == 0 if not flip else 60 < flips[True] < 140
    # From the seed and the position alone: the same again, and others in the next epoch.
    assert_same(take(load(source, **changes), 5), batches[:5])
    assert not all(
        np.array_equal(a["parallel"]["time_ids"], b["parallel"]["time_ids"])
        for a, b in zip(batches[:3], batches[3:6], strict=True)
    )


def test_time_ids_of_a_centre_crop_by_hand(load, tmp_path):
    """60 x 100 in a bucket of 24 x 32: resized to 24 x 40, then cropped by 8 columns, 4 on each
    side. A flip alone leaves a crop in the middle, and mirrors it.
    """
    source = coordinates(tmp_path, 60, 100)
    changes = {"native_batch": 0, "parallel_batch": 2, "languages": ["zh"]}
    changes |= {"buckets": ((24, 32, 1.0), (32, 8, 0.5)), "random_flip": True}
    with pytest.warns(BucketWarning, match="bucket 32x8 has no parallel rows"):
        loader = load(source, **changes)
    flips = set()
    for batch in take(loader, 12):
        assert batch["parallel"]["time_ids"].tolist() == [[60, 100, 0, 4, 24, 32]] * 2
        for pixels in batch["parallel"]["pixels"]:
            # Column x of the result is that of source column 2.5 (x + 4.5) - 0.5.
            expected = 2.5 * (np.arange(32) + 4.5) - 0.5
            flipped = pixels[5, 3, 1] > pixels[5, -3, 1]
            expected = 99 - expected if flipped else expected
            assert np.abs(pixels[12, :, 1] - expected)[2:-2].max() <= 1
            flips.add(bool(flipped))
    assert flips == {True, False}


@pytest.mark.parametrize("weights", [{}, {"zh": 1.0, "ja": 3.0}])
def test_streams_hold_the_rows_of_their_kind_in_order(source, weights):
    """Compare row by row; languages keep the order of their weights, which the draws depend on."""
    made = plan.make_plan(
        source,
        batch={"native": 2, "parallel": 4},
        seed=0,
        buckets=BUCKETS,
        languages=["zh", "ja"],
        weights=weights,
    )
    for part in made.parts:
        for bucket, streams in zip(made.buckets, part.streams, strict=True):
            expected = {language: [] for language in weights or [""]}
            for number in range(len(source)):
                language, native, size = KINDS[int(source[number].key.removeprefix("row"))]
                if (native, size) == (part.name == "native", bucket[:2]):
                    expected[language if weights else ""].append(number)
            assert [stream.rows.tolist() for stream in streams] == [
                rows for rows in expected.values() if rows
            ]
            # 64-bit numbers would be most of what each worker is given.
            assert {stream.rows.dtype for stream in streams} == {np.dtype(np.uint8)}


def test_views_are_drawn_apart(source):
    """Views differ by position and by stream, each part of a view independently."""
    made = plan.make_plan(
        source,
        batch={"native": 2, "parallel": 4},
        seed=0,
        buckets=BUCKETS,
        languages=["zh"],
        weights={},
    )
    streams = [stream for part in made.parts for each in part.streams for stream in each]
    views = [stream.view(position) for stream in streams for position in range(400)]
    places = np.array([(view.down, view.right, view.flipped) for view in views])
    assert len({tuple(place) for place in places}) == len(views)
    assert np.abs(np.corrcoef(places.T) - np.eye(3)).max() < 0.07
    assert places.mean(axis=0) == pytest.approx(0.5, abs=0.03)
    assert images.View() == images.CENTRE == images.View(0.5, 0.5, flipped=False)
