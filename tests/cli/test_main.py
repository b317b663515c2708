import importlib
import json
import logging
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
from absl import logging as absl_logging

import pea_jax
from pea_jax.cli import config, main
from pea_jax.cli.commands import COMMANDS, parse
from pea_jax.runtime import checkpoint
from pea_jax.runtime.errors import UsageError

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = str(CONFIGS / "tiny_zh.py")


class Task:
    """Stands in for a task and records its arguments."""

    def __init__(self, act=lambda: None):
        self.calls = []
        self.act = act

    def __call__(self, *arguments, **flags):
        self.calls.append((*arguments, flags))
        self.act()


@pytest.fixture
def task(monkeypatch):
    """Replaces the task of a command by a `Task`, without starting jax."""

    def place(verb, act=lambda: None, **others):
        fake = Task(act)
        module = types.ModuleType(verb)
        vars(module).update({verb: fake}, **others)
        real = importlib.import_module
        monkeypatch.setattr(
            main.importlib,
            "import_module",
            lambda name: module if name == f"pea_jax.tasks.{verb}" else real(name),
        )
        monkeypatch.setattr(main, "_start_jax", lambda config, **joining: None)
        return fake

    return place


def run(capsys, *arguments):
    """Status, standard output, lines of standard error."""
    status = main.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err.splitlines()


def test_help_is_short_and_imports_no_jax():
    program = (
        "import sys; from pea_jax.cli.main import main; status = main(sys.argv[1:]);"
        "heavy = ('jax', 'orbax', 'transformers', 'numpy');"
        "print([name for name in heavy if name in sys.modules]);"
        "sys.exit(status)"
    )
    for arguments in (["--help"], ["train", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
        )
        *text, imported = done.stdout.splitlines()
        assert imported == "[]"
        assert done.stderr == ""
        assert len(text) < 30
        assert max(map(len, text)) <= 100


def test_help_names_every_command_and_its_example(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    for name, command in COMMANDS.items():
        assert f"  {name} " in out
        assert f"pea-jax {name} {command.example}" in out
    # Without a command the same is shown, but nothing was done.
    assert run(capsys) == (2, out, [])


#: The commands that take a config and a workdir.
OF_RUNS = [name for name, command in COMMANDS.items() if command.takes_config]


@pytest.mark.parametrize("name", OF_RUNS)
def test_help_of_a_command_lists_its_flags_and_with_a_config_the_fields(capsys, name):
    status, out, err = run(capsys, name, "--help")
    assert (status, err) == (0, [])
    assert "--config NAME " in out
    for flag in ("workdir", "debug", "verbose"):
        assert f" --{flag} " in out
    status, out, _ = run(capsys, name, "--config", "tiny_zh", "--help")
    assert status == 0
    assert "  --config.optim.learning_rate=0.002\n" in out


def test_help_of_a_command_without_a_config_lists_its_flags_alone(capsys):
    status, out, err = run(capsys, "convert", "--help")
    assert (status, err) == (0, [])
    assert "  --language-encoder NAME  language" in out
    assert "  --output DIR             new folder" in out
    assert "config" not in out.replace("config.json", "")


def test_the_example_of_every_command_can_be_parsed():
    for name, command in COMMANDS.items():
        arguments, rest = parse([name, *command.example.split()])
        assert all(getattr(arguments, flag) for flag in command.required), name
        config.override(config.load("tiny_zh"), rest)


def test_the_version_is_that_of_the_package():
    done = subprocess.run(
        [sys.executable, "-m", "pea_jax", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"pea-jax {pea_jax.__version__}\n"


def test_a_task_gets_the_config_with_its_overrides(capsys, task, tmp_path):
    train = task("train")
    overrides = [
        "--config.optim.learning_rate=1e-4",
        "--config.distill.hybrid=false",
        "--config.data.dataset=laion/1.0.0",
        "--config.train.sample_prompts=('一', '二')",
        "--config.seed=5",
    ]
    status, _, err = run(capsys, "train", "--config", TINY, "--workdir", tmp_path, *overrides)
    assert (status, err) == (0, [])
    ((made, workdir, flags),) = train.calls
    assert (workdir, flags) == (tmp_path, {"profile": None})
    assert made.optim.learning_rate == 1e-4
    assert made.distill.hybrid is False
    assert made.data.dataset == "laion/1.0.0"
    assert made.train.sample_prompts == ("一", "二")
    assert made.seed == 5
    assert made.adapter.hidden_width == 256
    assert made.is_locked


def test_a_command_without_a_config_gets_its_file_at_any_position(capsys, task):
    convert = task("convert")
    for words in (["~/a.bin", "--output", "out"], ["--output=out", "--base=x", "~/a.bin"]):
        assert run(capsys, "convert", *words) == (0, "", [])
    common = {"format": None, "dtype": None, "language_encoder": None, "output": Path("out")}
    common |= {"file": Path("~/a.bin").expanduser()}
    assert convert.calls == [(common | {"base": None},), (common | {"base": "x"},)]


def test_after_training_the_config_is_that_of_the_workdir(capsys, task, tmp_path):
    made = config.override(config.load(CONFIGS / "tiny_zh.py"), ["--config.seed=9"])
    checkpoint.write_config(tmp_path, made.to_dict())
    evaluate = task("evaluate")
    status, _, err = run(
        capsys, "evaluate", "--workdir", tmp_path, "--config.train.sample_prompts=('一',)"
    )
    assert (status, err) == (0, [])
    used = evaluate.calls[0][0]
    assert used.seed == 9
    assert used.train.sample_prompts == ("一",)
    assert used.data == made.data


def test_prompts_come_from_a_file_or_from_the_command_line(capsys, task, tmp_path):
    file = tmp_path / "prompts.txt"
    sample = task("sample", read_prompts=lambda path: [f"read {path}"])
    common = ("sample", "--config", TINY, "--output", "~/images")
    assert run(capsys, *common, "--prompt", "甲", "--prompt=乙")[0] == 0
    assert run(capsys, *common, "--prompts", file)[0] == 0
    assert [call[1] for call in sample.calls] == [None, None]
    rest = {"output": Path("~/images").expanduser(), "step": None}
    assert [call[2] for call in sample.calls] == [
        {"prompts": ["甲", "乙"], **rest},
        {"prompts": [f"read {file}"], **rest},
    ]
    both = run(capsys, *common, "--prompts", file, "--prompt", "甲")
    assert both == (2, "", ["pea-jax sample: expected either --prompts FILE or --prompt TEXT"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trian", "pea-jax: no command 'trian'; expected one of prepare, train, sample"),
        ("train --config TINY", "pea-jax train: expected --workdir"),
        ("evaluate --workdir DIR --step last", "pea-jax evaluate: argument --step: invalid int"),
        ("prepare --workdir DIR", "pea-jax prepare: expected --config"),
        ("train --wrkdir DIR", "pea-jax train: no flag --wrkdir; did you mean --workdir?"),
        ("--verson", "pea-jax: no flag --verson; did you mean --version?"),
        (
            "convert x --languge-encoder=y",
            "pea-jax convert: no flag --languge-encoder; did",
        ),
        ("convert --base x", "pea-jax convert: expected FILE and --output"),
        ("convert x y --output DIR", "pea-jax convert: unexpected 'y'"),
        ("train --workdir", "pea-jax train: argument --workdir: expected one argument"),
        ("train --config tiny --workdir DIR", "pea-jax train: no config 'tiny'; expected a Python"),
        ("train --config TINY --workdir DIR more", "pea-jax train: unexpected 'more'"),
        (
            "train --config TINY --workdir DIR --config.optim.learning_rte=1",
            "pea-jax train: the config has no field optim.learning_rte; did you mean "
            "optim.learning_rate?",
        ),
        (
            "train --config TINY --workdir DIR --config.train.steps=many",
            "pea-jax train: flag --config.train.steps=many: invalid literal",
        ),
    ],
)
def test_wrong_usage_gets_one_line(capsys, task, tmp_path, arguments, message):
    train = task("train")
    places = {"TINY": TINY, "DIR": tmp_path / "run"}
    status, out, err = run(capsys, *(places.get(word, word) for word in arguments.split()))
    assert (status, out, len(err)) == (2, "", 1)
    assert err[0].startswith(message)
    assert train.calls == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no config file "),
        ("def get_config(): return 1", "expected a ConfigDict, got a int"),
        ("x = 1", "has no attribute 'get_config'"),
        ("def get_config(:", "invalid syntax"),
        (
            "from pea_jax.configs import base\n"
            "def get_config():\n"
            "    config = base.get_config()\n"
            "    config.optim.learning_rte = 1\n"
            "    return config\n",
            'Did you mean "learning_rate" instead of "learning_rte"?',
        ),
    ],
)
def test_a_config_file_that_cannot_be_read_gets_one_line(capsys, tmp_path, text, message):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    status, _, err = run(capsys, "train", "--config", file, "--workdir", tmp_path / "run")
    assert (status, len(err)) == (1, 1)
    assert err[0].startswith("pea-jax train: ")
    assert message in err[0]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("no\n  such thing"), "no such thing"),
        (FileNotFoundError("holds no run"), "holds no run"),
        (
            FileNotFoundError(2, "No such file or directory", "a/b"),
            "a/b: No such file or directory",
        ),
        (OSError(28, "No space left on device"), "No space left on device"),
        (FloatingPointError("step 3: loss = nan"), "step 3: loss = nan"),
        (ValueError(), "ValueError"),
    ],
)
def test_an_error_of_a_task_is_one_line_and_with_debug_a_traceback(capsys, task, error, message):
    def act():
        raise error

    task("prepare", act)
    assert run(capsys, "prepare", "--config", TINY) == (1, "", [f"pea-jax prepare: {message}"])
    status, _, err = run(capsys, "prepare", "--config", TINY, "--debug")
    assert (status, err[0]) == (1, "Traceback (most recent call last):")


def test_a_long_list_is_cut(capsys, task):
    def act():
        raise ValueError("\n  ".join(["12 tensors:", *(f"missing: {i}" for i in range(12))]))

    task("prepare", act)
    _, _, (line,) = run(capsys, "prepare", "--config", TINY)
    assert line == (
        "pea-jax prepare: 12 tensors: missing: 0; missing: 1; missing: 2; missing: 3; missing: 4; "
        "missing: 5; missing: 6; missing: 7; and 4 more (--debug shows them)"
    )


def test_a_bug_keeps_its_traceback(task):
    def act():
        raise ZeroDivisionError

    task("prepare", act)
    with pytest.raises(ZeroDivisionError):
        main.main(["prepare", "--config", TINY])


def test_ctrl_c_ends_with_130(capsys, task):
    def act():
        raise KeyboardInterrupt

    task("prepare", act)
    assert run(capsys, "prepare", "--config", TINY) == (130, "", ["pea-jax prepare: interrupted"])


def test_warnings_of_this_package_are_one_line_and_those_of_libraries_are_hidden(capsys, task):
    def act():
        logging.getLogger("pea_jax.weights.tokenizers").warning("%r is\ntoo long", "甲")
        logging.getLogger("orbax.checkpoint").warning("noise")
        logging.getLogger("jax._src.xla_bridge").warning("noise")
        absl_logging.warning("noise")  # this file is not in the package
        ours = Path(main.__file__).parents[1] / "data" / "schema.py"
        absl_logging.get_absl_logger().handle(
            logging.LogRecord("absl", logging.WARNING, str(ours), 1, "row %s", ("7",), None)
        )
        warnings.warn_explicit(
            "careful", UserWarning, "x.py", 1, module="pea_jax.inference.pipeline"
        )
        warnings.warn_explicit("noise", UserWarning, "y.py", 1, module="numpy")

    task("prepare", act)
    status, _, err = run(capsys, "prepare", "--config", TINY)
    assert status == 0
    assert err == [
        "pea-jax prepare: warning: '甲' is too long",
        "pea-jax prepare: warning: row 7",
        "pea-jax prepare: warning: careful",
    ]
    # The loggers are restored.
    assert logging.getLogger("absl").propagate
    assert logging.getLogger("pea_jax").handlers == []


def test_compiled_programs_are_kept_where_the_config_says(monkeypatch, tmp_path):
    import jax

    monkeypatch.setenv("HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    made = config.load("tiny_zh")
    try:
        main._start_jax(made, distributed=None, preemptible=False)
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / ".cache" / "pea_jax")
        jax.config.update("jax_compilation_cache_dir", None)
        made.train.compilation_cache = ""
        main._start_jax(made, distributed=None, preemptible=False)
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("name", ["sd21_zh", CONFIGS / "sd21_zh.py"])
def test_a_shipped_config_loads_by_name_and_by_path_from_any_folder(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    made = config.load(name)
    assert made.data.image_size == 768
    assert sys.path == before
    assert json.loads(json.dumps(made.to_dict()))["model"]["base"].endswith("stable-diffusion-2-1")


def test_a_name_that_does_not_exist_lists_the_names():
    names = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.py")))
    with pytest.raises(UsageError, match=f"no config 'sd3_zh'; .* one of {names}"):
        config.load("sd3_zh")
    with pytest.raises(FileNotFoundError, match=f"no config file sd3_zh.py; .*by name: {names}"):
        config.load("sd3_zh.py")


def test_a_config_file_imports_its_neighbours_and_the_shipped_configs(tmp_path):
    (tmp_path / "neighbour.py").write_text("SEED = 7\n")
    file = tmp_path / "mine.py"
    file.write_text(
        "import neighbour\n"
        "from pea_jax.configs import tiny_zh\n"
        "def get_config():\n"
        "    config = tiny_zh.get_config()\n"
        "    config.seed = neighbour.SEED\n"
        "    return config\n"
    )
    made = config.load(file)
    assert (made.seed, made.adapter.hidden_width) == (7, 256)


def test_fields_that_a_stored_config_lacks_have_their_defaults():
    stored = json.loads(json.dumps(config.load("tiny_zh").to_dict()))
    stored["optim"].pop("ema_decay")
    stored.pop("evaluate")
    assert config.from_json(stored) == config.load("tiny_zh")


def test_a_stored_config_with_fields_of_another_version_is_refused(capsys, task, tmp_path):
    stored = config.load("tiny_zh").to_dict() | {"sead": 1}
    stored["train"] |= {"step_count": 2}
    checkpoint.write_config(tmp_path, stored)
    evaluate = task("evaluate")
    status, _, (line,) = run(capsys, "evaluate", "--workdir", tmp_path)
    assert (status, evaluate.calls) == (1, [])
    assert "does not know: sead, train.step_count; remove them" in line
    with pytest.raises(ValueError, match=r"config\.json: .*seed"):
        config.from_json({"seed": "one"})
