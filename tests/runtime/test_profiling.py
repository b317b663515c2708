"""Traces of some steps."""

import jax
import jax.numpy as jnp
import pytest

from pea_jax.runtime.profiling import Trace, parse


def test_the_steps_are_counted_from_the_sittings_first():
    assert list(parse("20:3")) == [21, 22, 23]
    assert list(parse("0:1")) == [1]
    assert not parse(None)


@pytest.mark.parametrize("text", ["", "3", "3:", ":3", "3:0", "-1:2", "a:b", "1:2:3"])
def test_another_form_is_refused(text):
    with pytest.raises(ValueError, match=r"profile: expected START:COUNT such as 20:5, got "):
        parse(text)


def test_a_trace_is_where_tensorboard_looks_for_it_once_it_is_whole(tmp_path):
    with Trace(tmp_path, parse("1:2"), enabled=True) as trace:
        for number in range(1, 5):
            with trace.step(number):
                made = jnp.ones(3).sum()
            trace.dispatched(number, made)
            begun = (tmp_path / "profile").exists() and any(
                not entry.name.startswith(".") for entry in (tmp_path / "profile").iterdir()
            )
            assert begun == (number >= 3)
    assert len(list(tmp_path.glob("profile/*/plugins/profile/*/*.xplane.pb"))) == 1


def test_the_last_step_is_waited_for_before_the_trace_ends(tmp_path, monkeypatch):
    """A dispatched step runs on: a trace that ended first would lack what the devices do of it."""
    seen = []
    for place, name in ((jax, "block_until_ready"), (jax.profiler, "stop_trace")):
        real = getattr(place, name)

        def note(*arguments, real=real, name=name):
            seen.append((name, *arguments))
            return real(*arguments)

        monkeypatch.setattr(place, name, note)
    with Trace(tmp_path, parse("1:2"), enabled=True) as trace:
        for number in range(1, 5):
            with trace.step(number):
                pass
            trace.dispatched(number, number)
    assert seen == [("block_until_ready", 3), ("stop_trace",)]


def test_a_run_that_ends_while_it_traces_keeps_what_there_is(tmp_path):
    with Trace(tmp_path, parse("0:100"), enabled=True) as trace, trace.step(1):
        jnp.ones(3).sum()
    assert list(tmp_path.glob("profile/*/plugins/profile/*/*.xplane.pb"))


def test_nothing_is_traced_by_default_or_by_other_processes(tmp_path):
    for steps, enabled in ((parse(None), True), (parse("0:1"), False)):
        with Trace(tmp_path, steps, enabled=enabled) as trace, trace.step(1):
            pass
    assert not any(tmp_path.iterdir())
