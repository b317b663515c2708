"""The package as pip installs it: built, installed with its dependencies, run without a checkout.

Needs a package index; `make test-wheel` runs it.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import pea_jax

pytestmark = pytest.mark.wheel

ROOT = Path(__file__).parents[1]
FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")
FOLDERS = ("pea_jax", "configs")


def call(*words: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{words}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def python(folder: Path) -> Path:
    """The Python of a new environment, which has pip alone."""
    call(sys.executable, "-m", "venv", folder, cwd=folder.parent, **os.environ)
    return folder / "bin" / "python"


def pip_install(interpreter: Path, what: object) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", what]
    call(interpreter, *words, cwd=interpreter.parent, **environment)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from the sdist of a clean copy of the checkout."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    source.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, source)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    builder = python(folder / "venv")
    pip_install(builder, "build")
    call(builder, "-m", "build", "--outdir", folder / "dist", cwd=source, **os.environ)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def test_the_wheel_has_every_file_of_the_package_and_no_other(wheel):
    files = [file.relative_to(ROOT) for name in FOLDERS for file in (ROOT / name).rglob("*.*")]
    files = [file.as_posix() for file in files if "__pycache__" not in file.parts]
    expected = {f"pea_jax/{file}" if file.startswith("configs/") else file for file in files}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == expected


def test_an_installed_package_trains_samples_evaluates_and_exports(wheel, tmp_path):
    interpreter = python(tmp_path / "venv")
    pip_install(interpreter, wheel)
    folder, home = tmp_path / "empty", tmp_path / "home"
    folder.mkdir()
    home.mkdir()

    def run(program: str, *words: str) -> str:
        # Compiled without optimization, which is faster for so few steps.
        environment = {"PATH": f"{interpreter.parent}:/usr/bin:/bin", "HOME": str(home)}
        environment |= {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
        return call(interpreter.parent / program, *words, cwd=folder, **environment)

    imports = "import importlib.util as u; print(*map(u.find_spec, ('torch', 'tests', 'configs')))"
    assert run("python", "-c", imports) == "None None None\n"
    version = f"pea-jax {pea_jax.__version__}\n"
    assert run("python", "-m", "pea_jax", "--version") == run("pea-jax", "--version") == version

    small = ["--config.data.batch_size=4", "--config.data.native_batch_size=2"]
    run(
        "pea-jax",
        "train",
        "--config",
        "tiny_zh",
        "--workdir",
        "x",
        "--config.train.steps=20",
        *small,
    )
    run(
        "pea-jax",
        "sample",
        "--workdir",
        "x",
        "--prompt",
        "夜空中有一个黄色的大星星",
        "--output",
        "y",
    )
    run("pea-jax", "evaluate", "--workdir", "x", "--config.evaluate.prompts=2")
    run("pea-jax", "export", "--workdir", "x", "--output", "z")
    made = {str(file.relative_to(folder)) for file in folder.rglob("*")}
    assert {"y/00000.png", "x/eval.json", "x/grid.png", "z/adapter.safetensors"} <= made
    assert {"z/diffusers/pipeline.py", "z/diffusers/model_index.json"} <= made

    # A config file of the user's own builds on a shipped one.
    (folder / "mine.py").write_text("from pea_jax.configs.tiny_zh import get_config\n")
    assert "--config.adapter.hidden_width=256\n" in run(
        "pea-jax", "train", "--config", "mine.py", "--help"
    )
