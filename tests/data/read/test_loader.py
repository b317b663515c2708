import io
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections import Counter
from pathlib import Path

import grain.checkpoint
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from pea_jax.data.read.loader import BadImagesError, BadImageWarning, make_loader
from pea_jax.data.read.source import Source
from pea_jax.data.write.builder import build
from tests.data import sets

ZH = {part: sets.numbers("zh", part == "native") for part in ("native", "parallel")}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return sets.source(tmp_path_factory.mktemp("data"))


@pytest.fixture
def load():
    """Makes loaders of the Chinese rows, 2 native and 4 parallel a step, and closes them."""
    made = []

    def make(source, **changes):
        arguments = {
            "native_batch": 2,
            "parallel_batch": 4,
            "seed": 5,
            "native_tokenizer": sets.tokenize,
            "english_tokenizer": sets.tokenize,
            "image_size": sets.SIDE,
            "languages": ["zh"],
        }
        loader = make_loader(source, **(arguments | changes))
        made.append(loader)
        return loader

    yield make
    for loader in made:
        loader.close()


def take(loader, steps):
    return list(itertools.islice(loader, steps))


def numbers(batches, part):
    """The rows of batches in order, by their pictures."""
    return [sets.number_of(pixels) for batch in batches for pixels in batch[part]["pixels"]]


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for part, arrays in one.items():
            assert arrays.keys() == other[part].keys()
            for name, array in arrays.items():
                np.testing.assert_array_equal(array, other[part][name])


def test_a_batch_holds_both_parts_in_exact_numbers(source, load):
    for batch in take(load(source), 30):
        assert list(batch) == ["native", "parallel"]
        for part, size in (("native", 2), ("parallel", 4)):
            arrays = {name: (array.shape, array.dtype) for name, array in batch[part].items()}
            tokens = {"ids": ((size, 6), np.int32), "mask": ((size, 6), np.int32)}
            picture = {"pixels": ((size, 8, 8, 3), np.uint8), "time_ids": ((size, 6), np.int32)}
            expected = picture | tokens | {"language": ((size,), np.int32)}
            if part == "parallel":
                expected |= {f"english_{name}": form for name, form in tokens.items()}
            assert arrays == expected


def test_texts_belong_to_their_pictures(source, load):
    for batch in take(load(source), 10):
        for part, arrays in batch.items():
            row_numbers = numbers([batch], part)
            assert [sets.text_of(ids) for ids in arrays["ids"]] == [f"c{n}" for n in row_numbers]
            np.testing.assert_array_equal(arrays["mask"], arrays["ids"] > 0)
            if part == "parallel":
                english = [sets.text_of(ids) for ids in arrays["english_ids"]]
                assert english == [f"e{number}" for number in row_numbers]


def test_time_ids_are_height_then_width(load, tmp_path):
    """SDXL's own order: the picture's size, the crop's corner, the size of the pixels."""
    image = io.BytesIO()
    Image.fromarray(np.zeros((10, 24, 3), np.uint8)).save(image, "PNG")
    wide = [sets.row(number, image=image.getvalue(), height=10, width=24) for number in range(2)]
    folder = build(tmp_path, "wide", {"train": [lambda: wide]})
    loader = load(Source(folder, "train"), native_batch=0, parallel_batch=2)
    (batch,) = take(loader, 1)
    # Resized to 8 x 19, of which the columns from 5 on are kept.
    assert batch["parallel"]["time_ids"].tolist() == [[10, 24, 0, 5, 8, 8]] * 2


def test_a_part_without_rows_is_absent(source, load):
    assert list(next(load(source, native_batch=0))) == ["parallel"]
    alone = load(source, parallel_batch=0, english_tokenizer=None)
    assert list(next(alone)) == ["native"]


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_every_epoch_has_every_row_once_over_all_hosts(source, load, hosts):
    # 23 and 13 rows: neither a step nor a host divides an epoch.
    loaders = [
        load(source, native_batch=4, parallel_batch=8, shard_index=host, shard_count=hosts)
        for host in range(hosts)
    ]
    steps = [list(step) for step in itertools.islice(zip(*loaders, strict=True), 23)]
    for part, rows in ZH.items():
        stream = [number for step in steps for number in numbers(step, part)]
        epochs = [stream[start : start + len(rows)] for start in range(0, len(stream), len(rows))]
        whole = [epoch for epoch in epochs if len(epoch) == len(rows)]
        assert len(whole) >= 7
        for epoch in whole:
            assert sorted(epoch) == rows
        assert len({tuple(epoch) for epoch in whole}) == len(whole), "each is shuffled anew"
        assert rows not in whole


def test_hosts_share_the_batch_that_one_would_make(source, load):
    alone = take(load(source), 12)
    shares = [take(load(source, shard_index=host, shard_count=2), 12) for host in range(2)]
    joined = [
        {
            part: {name: np.concatenate([a[part][name], b[part][name]]) for name in a[part]}
            for part in a
        }
        for a, b in zip(*shares, strict=True)
    ]
    assert_same(joined, alone)


def test_the_seed_alone_decides_the_order(source, load):
    assert_same(take(load(source), 9), take(load(source), 9))
    others = [numbers(take(load(source, seed=seed), 9), "parallel") for seed in (5, 6, 7)]
    assert len(set(map(tuple, others))) == 3
    # The parts are shuffled apart: with as many rows of each, places would otherwise agree.
    loader = load(source, native_batch=1, parallel_batch=1, languages=None)
    streams = [part.streams[0][0] for part in loader._fetch.plan.parts]
    orders = [[stream.order[n] for n in range(13)] for stream in streams]
    assert orders[0] != orders[1]


def test_only_chosen_languages_are_taken(source, load):
    both = take(load(source, languages=None), 30)
    japanese = take(load(source, languages=["ja"]), 30)
    for part, native in (("native", True), ("parallel", False)):
        ja = set(sets.numbers("ja", native))
        assert set(numbers(japanese, part)) == ja
        assert set(numbers(both, part)) == ja | set(ZH[part])


@pytest.mark.parametrize("languages", [None, ["ja", "zh"], ["zh", "ja"]])
def test_batches_tell_the_language_of_every_row(source, load, languages):
    loader = load(source, languages=languages)
    assert loader.languages == tuple(languages or ["ja", "zh"])
    for batch in take(loader, 12):
        for part, arrays in batch.items():
            native = part == "native"
            for number, language in zip(numbers([batch], part), arrays["language"], strict=True):
                assert number in sets.numbers(loader.languages[language], native)


def test_a_state_goes_on_with_the_next_batch_wherever_it_was_taken(source, load):
    loader = load(source)
    states, batches = [], []
    for _ in range(9):
        states.append(json.dumps(loader.get_state()))
        batches.append(next(loader))
    for step in (0, 1, 5, 8):
        fresh = load(source)
        next(fresh)
        fresh.set_state(json.loads(states[step]))
        assert_same(take(fresh, 9 - step), batches[step:])
    # Also of a run on two hosts.
    share = load(source, shard_index=1, shard_count=2)
    share.set_state(json.loads(states[5]))
    np.testing.assert_array_equal(
        next(share)["parallel"]["pixels"], batches[5]["parallel"]["pixels"][2:]
    )


def test_a_state_does_not_change_afterwards_and_stays_small(source, load):
    loader = load(source)
    state = loader.get_state()
    before = json.dumps(state)
    take(loader, 20)
    assert json.dumps(state) == before
    assert len(json.dumps(loader.get_state())) < 200


def test_grain_checkpoints_carry_the_state(source, load, tmp_path):
    loader = load(source)
    take(loader, 7)
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(7, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(loader)))
        expected = take(loader, 5)
        manager.wait_until_finished()
        fresh = load(source)
        arguments = grain.checkpoint.CheckpointRestore(fresh)
        restored = manager.restore(7, args=ocp.args.Composite(data=arguments))["data"]
    assert_same(take(restored, 5), expected)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4), (4, 2)])
def test_a_run_goes_on_with_another_number_of_hosts(source, load, before, after):
    sizes = {"native_batch": 4, "parallel_batch": 8}
    alone = take(load(source, **sizes), 40)
    hosts = [load(source, **sizes, shard_index=i, shard_count=before) for i in range(before)]
    shares = [take(host, 7) for host in hosts]
    state = hosts[0].merge_states([json.loads(json.dumps(host.get_state())) for host in hosts])
    hosts = [load(source, **sizes, shard_index=i, shard_count=after) for i in range(after)]
    for host in hosts:
        host.set_state(state)
    rest = [take(host, 33) for host in hosts]
    for part in ("native", "parallel"):
        for step, batch in enumerate(alone):
            there, at = (shares, step) if step < 7 else (rest, step - 7)
            # The same rows in the same order, so every row of an epoch is taken exactly once.
            rows = np.concatenate([numbers([share[at]], part) for share in there])
            np.testing.assert_array_equal(rows, numbers([batch], part))


def test_an_epoch_over_ever_fewer_hosts_has_every_row_once_by_the_keys(source, load):
    """Four hosts, then two, then one: the keys of what each took, up to the end of the epoch."""
    rows = {part: source.select(native=part == "native", languages=["zh"]) for part in ZH}
    steps = len(rows["parallel"]) // 4
    assert steps >= 3
    seen, state, at = Counter(), None, 0
    for hosts, until in ((4, 1), (2, steps - 1), (1, steps)):
        loaders = [
            load(source, native_batch=4, shard_index=i, shard_count=hosts) for i in range(hosts)
        ]
        for loader in loaders:
            if state is not None:
                loader.set_state(loader.merge_states(state))
            for step in range(at, until):
                keys = loader.keys(step)
                batch = next(loader)
                assert len(keys["parallel"]) == len(batch["parallel"]["pixels"]) == 4 // hosts
                seen.update(keys["parallel"])
        state, at = [loader.get_state() for loader in loaders], until
    whole = {source[int(row)].key for row in rows["parallel"]}
    assert set(seen) <= whole
    assert len(seen) == 4 * steps
    assert set(seen.values()) == {1}


def test_hosts_states_are_merged_by_the_images_that_they_could_not_read(source, load):
    state = load(source).get_state()
    met = [{"a": "x"}, {}, {"b": "y", "a": "x"}]
    states = [{**state, "bad": {str(host): bad}} for host, bad in enumerate(met)]
    merged = load(source).merge_states(states)
    assert merged == {**state, "bad": {"0": met[0], "1": met[1], "2": met[2]}}
    with pytest.raises(ValueError, match=r"disagree: step \[0, 3\]"):
        load(source).merge_states([state, {**state, "step": 3}])


def test_a_state_of_another_run_is_refused(source, load):
    state = load(source).get_state()
    others = {
        "seed 5, here 6": {"seed": 6},
        "'native': 2, 'parallel': 4}, here {'native': 4, 'parallel': 4}": {"native_batch": 4},
        "'native': 13, 'parallel': 23}, here {'native': 18,": {"languages": None},
    }
    for message, changes in others.items():
        loader = load(source, **changes)
        with pytest.raises(ValueError, match=message):
            loader.set_state(state)


def test_a_state_of_another_set_with_as_many_rows_is_refused(source, load, tmp_path):
    """One other picture makes another set; a copy elsewhere is the same set."""
    state = load(source).get_state()
    other = load(sets.source(tmp_path, damaged=ZH["native"][:1]))
    message = f"another run: dataset_digest '{source.digest}', here '[0-9a-f]{{16}}'$"
    with pytest.raises(ValueError, match=message):
        other.set_state(state)
    with pytest.raises(ValueError, match="states of the data iterator disagree: dataset_digest"):
        other.merge_states([state, other.get_state()])
    copy = shutil.copytree(source.folder, tmp_path / "elsewhere" / source.folder.name)
    load(Source(copy, "train")).set_state(state)


@pytest.mark.filterwarnings("ignore::pea_jax.data.read.loader.BadImageWarning")
def test_worker_processes_change_nothing(load, tmp_path):
    source = sets.source(tmp_path, damaged=[ZH["parallel"][3]])
    threads = load(source, max_bad=1)
    expected = take(threads, 8)
    processes = load(source, max_bad=1, workers=2)
    assert_same(take(processes, 5), expected[:5])
    # Their state, taken while they are ahead, goes on in another number of them.
    state = processes.get_state()
    processes.close()
    one = load(source, max_bad=1, workers=1)
    one.set_state(state)
    assert_same(take(one, 3), expected[5:])
    assert one.bad == threads.bad
    assert len(one.bad) == 1


def test_a_notice_to_the_whole_job_leaves_workers_at_work(source, load):
    expected = take(load(source), 30)
    loader = load(source, workers=2)
    first = take(loader, 1)
    # Slurm sends SIGTERM to every process of a task; the parent saves, and may need a batch for it.
    workers = multiprocessing.active_children()
    assert workers
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
    assert_same(first + take(loader, 29), expected)
    loader.close()


def test_workers_die_with_a_killed_parent(source, tmp_path):
    program = """
        import multiprocessing, os, signal, sys
        from pea_jax.data.read.loader import make_loader
        from pea_jax.data.read.source import Source
        from tests.data import sets

        if __name__ == "__main__":
            loader = make_loader(
                Source(sys.argv[1], "train"), native_batch=0, parallel_batch=2, seed=0,
                native_tokenizer=sets.tokenize, english_tokenizer=sets.tokenize, image_size=8,
                workers=1)
            next(loader)
            print(*(process.pid for process in multiprocessing.active_children()), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    file = tmp_path / "program.py"
    file.write_text(textwrap.dedent(program))
    command = [sys.executable, str(file), str(source.folder)]
    environment = {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    workers = [Path("/proc") / pid for pid in done.stdout.split()]
    assert len(workers) == 1
    deadline = time.monotonic() + 20
    while any(worker.exists() for worker in workers):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.1)


def test_an_unreadable_image_is_reported_once_and_replaced(load, tmp_path):
    bad = [ZH["parallel"][4], ZH["native"][2]]
    source = sets.source(tmp_path, damaged=bad)
    loader = load(source, max_bad=2)
    with pytest.warns(BadImageWarning) as caught:
        batches = take(loader, 60)
    assert len(caught) == 2
    for number in bad:
        assert any(f"row{number} " in str(warning.message) for warning in caught)
        assert "trunca" in loader.bad[f"row{number}"]
    assert set(loader.bad) == {f"row{number}" for number in bad}
    # Its place is taken by the next row of its kind; nothing else moves.
    whole = take(load(sets.source(tmp_path / "whole")), 60)
    for part, number in (("parallel", bad[0]), ("native", bad[1])):
        stand_in = ZH[part][ZH[part].index(number) + 1]
        expected = [stand_in if n == number else n for n in numbers(whole, part)]
        assert numbers(batches, part) == expected


def test_neighbouring_unreadable_images_are_all_skipped(load, tmp_path):
    bad = [*ZH["parallel"][-2:], ZH["parallel"][0]]
    loader = load(sets.source(tmp_path, damaged=bad), max_bad=3)
    with pytest.warns(BadImageWarning):
        seen = Counter(numbers(take(loader, 23), "parallel"))
    assert set(seen) == set(ZH["parallel"]) - set(bad)
    assert len(loader.bad) == 3


def test_too_many_unreadable_images_end_the_run(load, tmp_path):
    bad = ZH["parallel"][3:6]
    source = sets.source(tmp_path, damaged=bad)
    loader = load(source, max_bad=2)
    with pytest.warns(BadImageWarning), pytest.raises(BadImagesError) as caught:
        take(loader, 60)
    message = str(caught.value)
    assert message.startswith(f"3 of 36 images in {source.folder} can't be read, at most 2 ")
    assert all(f"row{number}: " in message for number in bad)
    assert "\n" not in message
    # A run that accepts one more goes on where this one stopped.
    fresh = load(source, max_bad=3)
    fresh.set_state(loader.get_state())
    assert fresh.get_state()["step"] > 0
    next(fresh)
    assert len(fresh.bad) == 3


def test_none_is_accepted_by_default(load, tmp_path):
    loader = load(sets.source(tmp_path, damaged=ZH["native"][:1]))
    with pytest.raises(BadImagesError, match=r"1 of 36 .* at most 0 are accepted"):
        take(loader, 10)


def test_the_count_goes_on_after_a_restart(load, tmp_path):
    bad = ZH["parallel"][:2]
    source = sets.source(tmp_path, damaged=bad)
    loader = load(source, max_bad=2)
    with pytest.warns(BadImageWarning):
        take(loader, 12)
    assert len(loader.bad) == 2
    fresh = load(source, max_bad=2)
    fresh.set_state(json.loads(json.dumps(loader.get_state())))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take(fresh, 12)
    assert fresh.bad == loader.bad


def test_hosts_count_apart_also_after_a_restart(load, tmp_path):
    """Each host stops where it would have stopped without the resume."""
    source = sets.source(tmp_path, damaged=ZH["parallel"][::3])

    def hosts(max_bad):
        return [load(source, max_bad=max_bad, shard_index=i, shard_count=2) for i in range(2)]

    stopped = hosts(8)
    with pytest.warns(BadImageWarning):
        met = [list(loader.bad) for loader in stopped if take(loader, 3)]
    limit = max(map(len, met))
    assert len({*met[0], *met[1]}) > limit, "together they met more than each may"
    merged = stopped[0].merge_states([json.loads(json.dumps(one.get_state())) for one in stopped])
    undisturbed = [_steps_until_too_many(loader) for loader in hosts(limit)]
    resumed = hosts(limit)
    for loader in resumed:
        loader.set_state(merged)
    assert [list(loader.bad) for loader in resumed] == met
    assert [3 + _steps_until_too_many(loader) for loader in resumed] == undisturbed
    assert max(undisturbed) > 3

    # Fewer hosts continue with their own counts; a new host begins at none.
    for index, count, bad in ((0, 1, met[0]), (2, 4, [])):
        other = load(source, max_bad=8, native_batch=4, shard_index=index, shard_count=count)
        other.set_state({**merged, "batch": other.get_state()["batch"]})
        assert list(other.bad) == bad


def _steps_until_too_many(loader):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BadImageWarning)
        for step in range(40):
            try:
                next(loader)
            except BadImagesError:
                return step
    raise AssertionError("no host met more than the limit")


def test_a_set_without_a_readable_image_ends_the_run(load, tmp_path):
    source = sets.source(tmp_path, damaged=ZH["native"])
    loader = load(source, parallel_batch=0, max_bad=100)
    with pytest.warns(BadImageWarning) as caught, pytest.raises(BadImagesError, match="13 of 13"):
        next(loader)
    assert len(caught) == 10
    assert "only counted" in str(caught[-1].message)


def test_a_closed_loader_says_so(source, load):
    loader = load(source)
    next(loader)
    loader.close()
    loader.close()
    with pytest.raises(ValueError, match="closed"):
        next(loader)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"native_batch": 0, "parallel_batch": 0}, "not both 0"),
        ({"native_batch": -2}, "not both 0"),
        ({"shard_count": 2, "native_batch": 3}, "3 native rows a step don't divide over 2 hosts"),
        ({"shard_index": 2, "shard_count": 2}, "host 2 of 2"),
        ({"max_bad": -1}, "at least 0"),
        ({"english_tokenizer": None}, "english_tokenizer"),
        ({"languages": ["fr"]}, r"\['fr'\] are none of"),
    ],
)
def test_counts_that_make_no_sense_are_refused(source, load, changes, message):
    with pytest.raises(ValueError, match=message):
        load(source, **changes)


def test_a_part_that_the_set_lacks_is_named(load, tmp_path):
    made = [sets.row(number) for number in range(3)]
    folder = sets.build(tmp_path, "small", {"train": [lambda: made]})
    with pytest.raises(ValueError, match=r"no native rows of \['zh'\], but a step should take 2"):
        load(sets.Source(folder, "train"))


def test_a_tokenizer_of_another_form_is_refused(source, load):
    def flat(texts):
        return np.zeros(len(texts), np.int32), np.zeros(len(texts), np.int32)

    with pytest.raises(ValueError, match=r"each \[6, L\], got \(6,\)"):
        next(load(source, native_tokenizer=flat))
