import importlib
import inspect

import pytest

from pea_jax.cli.commands import COMMANDS, parse


@pytest.mark.parametrize("name", COMMANDS)
def test_a_task_takes_the_options_of_its_command(name):
    task = getattr(importlib.import_module(f"pea_jax.tasks.{name}"), name)
    first = ["config", "workdir"] if COMMANDS[name].takes_config else ["file"]
    parameters = list(inspect.signature(task).parameters)
    assert parameters[: len(first)] == first
    own = set(COMMANDS[name].names) - {"prompt"}  # --prompt and --prompts are one argument
    assert set(parameters) - {"config", "workdir"} == own


@pytest.mark.parametrize("name", COMMANDS)
def test_required_options_exist_and_options_of_runs_are_not_those_of_files(name):
    known, of_runs = set(vars(parse([name])[0])), {"config", "workdir", "distributed"}
    assert set(COMMANDS[name].required) <= known
    assert known & of_runs == (of_runs if COMMANDS[name].takes_config else set())
    rest = {"command", "parser", "help", "debug", "verbose"}
    assert known - of_runs - set(COMMANDS[name].names) == rest
