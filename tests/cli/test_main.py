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

from pea_jax.cli import config, main
from pea_jax.cli.commands import VERBS
from pea_jax.runtime import checkpoint

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = str(CONFIGS / "tiny_zh.py")


class Task:
    """Stands for a task's module, and notes what its function was given."""

    def __init__(self, act=lambda: None):
        self.calls = []
        self.act = act

    def __call__(self, *arguments, **flags):
        self.calls.append((*arguments, flags))
        self.act()


@pytest.fixture
def task(monkeypatch):
    """Puts a `Task` in the place of a verb's; jax is left as it is."""

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


def test_the_overview_names_every_verb_and_its_example(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    for name, verb in VERBS.items():
        assert f"  {name} " in out
        assert f"pea-jax {name} {verb.example}" in out
    # Without a verb the same is shown, but nothing was done.
    assert run(capsys) == (2, out, [])


#: The verbs that take a config and a workdir.
OF_RUNS = [name for name, verb in VERBS.items() if not verb.positional]


@pytest.mark.parametrize("verb", OF_RUNS)
def test_help_of_a_verb_tells_its_flags_and_with_a_config_the_fields(capsys, verb):
    status, out, err = run(capsys, verb, "--help")
    assert (status, err) == (0, [])
    for name in ("config", "workdir", "debug", "verbose"):
        assert f"  --{name}" in out
    status, out, _ = run(capsys, verb, "--config", TINY, "--help")
    assert status == 0
    assert "  --config.optim.learning_rate=0.002\n" in out


def test_help_of_a_verb_without_a_config_tells_its_flags_alone(capsys):
    status, out, err = run(capsys, "convert", "--help")
    assert (status, err) == (0, [])
    assert "  --language-encoder  what" in out
    assert "  --output            the folder" in out
    assert "config" not in out.replace("config.json", "")


def test_an_example_of_every_verb_can_be_parsed():
    for name, verb in VERBS.items():
        values, rest = main.parse(name, verb.example.split())
        assert all(values[flag].value for flag in verb.required), name
        if verb.positional:
            (_,) = rest
            continue
        config.override(config.load(CONFIGS / "tiny_zh.py"), rest)


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
    ((given, workdir, flags),) = train.calls
    assert (workdir, flags) == (tmp_path, {"profile": None})
    assert given.optim.learning_rate == 1e-4
    assert given.distill.hybrid is False
    assert given.data.dataset == "laion/1.0.0"
    assert given.train.sample_prompts == ("一", "二")
    assert given.seed == 5
    assert given.adapter.hidden_width == 256
    assert given.is_locked


def test_a_verb_without_a_config_gets_its_file_wherever_it_stands(capsys, task):
    convert = task("convert")
    for words in (["~/a.bin", "--output", "out"], ["--output=out", "--base=x", "~/a.bin"]):
        assert run(capsys, "convert", *words) == (0, "", [])
    given = {"format": None, "dtype": None, "language_encoder": None, "output": Path("out")}
    file = Path("~/a.bin").expanduser()
    assert convert.calls == [(file, given | {"base": None}), (file, given | {"base": "x"})]


def test_after_training_the_config_is_that_of_the_workdir(capsys, task, tmp_path):
    made = config.override(config.load(CONFIGS / "tiny_zh.py"), ["--config.seed=9"])
    checkpoint.write_config(tmp_path, made.to_dict())
    evaluate = task("evaluate")
    status, _, err = run(
        capsys, "evaluate", "--workdir", tmp_path, "--config.train.sample_prompts=('一',)"
    )
    assert (status, err) == (0, [])
    given = evaluate.calls[0][0]
    assert given.seed == 9
    assert given.train.sample_prompts == ("一",)
    assert given.data == made.data


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
    ("arguments", "told"),
    [
        ("trian", "pea-jax: no verb 'trian'; expected one of prepare, train, sample"),
        ("train --config TINY", "pea-jax train: expected --workdir"),
        ("evaluate --workdir DIR --step last", "pea-jax evaluate: flag --step=last: invalid lit"),
        ("prepare --workdir DIR", "pea-jax prepare: expected --config"),
        ("train --wrkdir DIR", "pea-jax train: no flag --wrkdir; did you mean --workdir?"),
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
def test_a_command_line_that_cannot_be_gets_one_line(capsys, task, tmp_path, arguments, told):
    train = task("train")
    places = {"TINY": TINY, "DIR": tmp_path / "run"}
    status, out, err = run(capsys, *(places.get(word, word) for word in arguments.split()))
    assert (status, out, len(err)) == (2, "", 1)
    assert err[0].startswith(told)
    assert train.calls == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "no config file "),
        ("def get_config(): return 1", "expected a ConfigDict, got a int"),
        ("x = 1", "has no attribute 'get_config'"),
        ("def get_config(:", "invalid syntax"),
        (
            "from configs import base\n"
            "def get_config():\n"
            "    config = base.get_config()\n"
            "    config.optim.learning_rte = 1\n"
            "    return config\n",
            'Did you mean "learning_rate" instead of "learning_rte"?',
        ),
    ],
)
def test_a_config_file_that_cannot_be_read_gets_one_line(capsys, monkeypatch, tmp_path, text, told):
    monkeypatch.chdir(CONFIGS.parent)
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    status, _, err = run(capsys, "train", "--config", file, "--workdir", tmp_path / "run")
    assert (status, len(err)) == (1, 1)
    assert err[0].startswith("pea-jax train: ")
    assert told in err[0]


@pytest.mark.parametrize(
    ("error", "told"),
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
def test_an_error_of_a_task_is_one_line_and_a_traceback_for_who_asks(capsys, task, error, told):
    def act():
        raise error

    task("prepare", act)
    assert run(capsys, "prepare", "--config", TINY) == (1, "", [f"pea-jax prepare: {told}"])
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


def test_a_bug_is_not_dressed_up_as_a_message(task):
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


def test_warnings_of_this_package_are_one_line_and_those_of_libraries_none(capsys, task):
    def act():
        logging.getLogger("pea_jax.weights.tokenizers").warning("%r is\ntoo long", "甲")
        logging.getLogger("orbax.checkpoint").warning("noise")
        logging.getLogger("jax._src.xla_bridge").warning("noise")
        absl_logging.warning("noise")  # from this file, which is not of the package
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
    # Afterwards the loggers are as they were.
    assert logging.getLogger("absl").propagate
    assert logging.getLogger("pea_jax").handlers == []


def test_compiled_programs_are_kept_where_the_config_says(monkeypatch, tmp_path):
    import jax

    monkeypatch.setenv("HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    made = config.load(CONFIGS / "tiny_zh.py")
    try:
        main._start_jax(made, distributed=None, preemptible=False)
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / ".cache" / "pea_jax")
        jax.config.update("jax_compilation_cache_dir", None)
        made.train.compilation_cache = ""
        main._start_jax(made, distributed=None, preemptible=False)
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_config_file_works_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    made = config.load(CONFIGS / "sd21_zh.py")
    assert made.data.image_size == 768
    assert sys.path == before
    assert json.loads(json.dumps(made.to_dict()))["model"]["base"].endswith("stable-diffusion-2-1")
