import io
import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from pea_jax.runtime.metrics import LanguageLosses, MetricWriter, read_metrics
from pea_jax.runtime.progress import TrainingBar


def events(workdir: Path) -> list[Event]:
    """The TensorBoard events of a workdir, in the order of its files (a TFRecord each)."""
    found = []
    for file in sorted((workdir / "tensorboard").iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 12 + length + 4
    return found


def test_scalars_go_to_both_files(tmp_path):
    with MetricWriter(tmp_path / "new") as writer:
        writer.scalars(10, {"loss": 0.5, "loss_native": 2})
        writer.scalars(20, {"loss": 0.25})
    lines = (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 10, "loss": 0.5, "loss_native": 2.0},
        {"step": 20, "loss": 0.25},
    ]
    points = {
        (event.step, value.tag): value.simple_value
        for event in events(tmp_path / "new")
        for value in event.summary.value
    }
    assert points == {(10, "loss"): 0.5, (10, "loss_native"): 2.0, (20, "loss"): 0.25}


def test_an_image_is_the_one_given(tmp_path, rng):
    image = rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    with MetricWriter(tmp_path) as writer:
        writer.image(30, "samples", image)
    (event,) = [event for event in events(tmp_path) if event.summary.value]
    value = event.summary.value[0]
    assert (event.step, value.tag) == (30, "samples")
    decoded = np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)).convert("RGB"))
    np.testing.assert_array_equal(decoded, image)


def test_a_resumed_run_drops_the_steps_it_takes_again(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in (1, 2, 3, 4):
            writer.scalars(step, {"loss": step})
    file = tmp_path / "metrics.jsonl"
    # A kill in the midst of a line.
    file.write_text(file.read_text() + '{"step": 5, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
    with MetricWriter(tmp_path, resumed=2) as writer:
        writer.scalars(3, {"loss": 30})
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 30.0),
    ]
    # TensorBoard hides what other files hold from this step on.
    starts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert starts[-1] == 3


def test_a_fresh_run_begins_with_an_empty_record(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.scalars(1, {"loss": 1})
    with MetricWriter(tmp_path):
        assert read_metrics(tmp_path) == []


def test_a_line_is_on_file_at_once(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.scalars(1, {"loss": 1})
        assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]


def test_other_processes_write_nothing(tmp_path):
    with MetricWriter(tmp_path / "none", enabled=False) as writer:
        writer.scalars(1, {"loss": 1})
        writer.image(1, "samples", np.zeros((2, 2, 3), np.uint8))
    assert not (tmp_path / "none").exists()


def test_the_loss_of_a_language_is_a_mean_over_the_rows_of_several_steps():
    """Not a mean of the steps' means, and no number for a language without rows."""
    losses = LanguageLosses(["zh", "ja", "ko"])
    assert losses.read() == {}
    step = losses.add(np.float32([3.0, 0.0, 0.0]), np.float32([3, 0, 0]))
    assert step == {"loss/zh": 1.0}
    step = losses.add(np.float32([5.0, 2.0, 0.0]), np.float32([1, 4, 0]))
    assert step == {"loss/zh": 5.0, "loss/ja": 0.5}
    assert losses.read() == {"loss/zh": 2.0, "loss/ja": 0.5}
    losses.restart()
    assert losses.read() == {}


def test_plain_lines_come_where_metrics_are_logged_and_at_the_end():
    stream = io.StringIO()
    values = {"loss": 0.123456, "loss_native": 2.0, "grad_norm": 7.0, "feature/mid": 1.0}
    with TrainingBar(25, 8, log_every=10, stream=stream) as bar:
        for step in range(1, 26):
            bar.update(step, values, 16.0 if step == 10 else None)
        bar.say("done [saved]")
    assert stream.getvalue().splitlines() == [
        "step 10/25  16.0 images/s  0:00:08 left  loss 0.1235  native 2",
        "step 20/25  16.0 images/s  0:00:02 left  loss 0.1235  native 2",
        "step 25/25  16.0 images/s  0:00:00 left  loss 0.1235  native 2",
        "done [saved]",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_with_the_same(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    stream = Terminal()
    with TrainingBar(20, 4, start=5, stream=stream) as bar:
        bar.update(6, {"loss": 0.5, "loss_output": 0.25}, 8.0)
        bar.say("a line [above] the bar")
    text = stream.getvalue()
    assert "a line [above] the bar\n" in text.replace("\r", "")
    assert "step 6/20" in text
    assert "8.0 images/s  0:00:07 left loss 0.5  output 0.25" in text


def test_other_processes_show_nothing():
    stream = Terminal()
    with TrainingBar(2, 4, stream=stream, enabled=False) as bar:
        bar.update(2, {"loss": 1.0}, None)
        bar.say("nothing")
    assert stream.getvalue() == ""
