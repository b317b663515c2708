import importlib
import inspect

import pytest

from pea_jax.cli.commands import VERBS, define, own_flags


@pytest.mark.parametrize("verb", VERBS)
def test_a_task_takes_the_flags_that_its_verb_offers(verb):
    task = getattr(importlib.import_module(f"pea_jax.tasks.{verb}"), verb)
    positional = VERBS[verb].positional
    first = [positional] if positional else ["config", "workdir"]
    parameters = list(inspect.signature(task).parameters)
    assert parameters[: len(first)] == first
    own = set(own_flags(verb)) - {"prompt"}  # --prompt and --prompts are one argument
    assert set(parameters[len(first) :]) == {name.replace("-", "_") for name in own}


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_required_is_a_flag_and_flags_of_runs_are_not_of_files(verb):
    flags, of_runs = set(define(verb)), {"config", "workdir", "distributed"}
    assert set(VERBS[verb].required) <= flags
    assert flags & of_runs == (set() if VERBS[verb].positional else of_runs)
    assert flags - of_runs - set(own_flags(verb)) == {"debug", "verbose", "v"}
