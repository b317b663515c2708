"""The import contract of pyproject.toml breaks where it must, and nowhere else."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Importing and imported module; at least one pair breaks each contract.
FORBIDDEN = [
    ("pea_jax.distill.losses", "pea_jax.weights.load"),
    ("pea_jax.weights.names", "pea_jax.distill.step"),
    ("pea_jax.data.schema", "pea_jax.models.adapter"),
    ("pea_jax.models.adapter", "pea_jax.inference.pipeline"),
    ("pea_jax.tasks.sample", "pea_jax.tasks.train"),
    ("pea_jax.inference.pipeline", "pea_jax.distill.step"),
    ("pea_jax.data.buckets", "jax"),
    ("pea_jax.runtime.metrics", "safetensors"),
    ("pea_jax.models.conditioning", "torch"),
]


@pytest.fixture
def package(tmp_path):
    """A folder with a copy of the package's code and its contract."""
    data = shutil.ignore_patterns("checkpoints", "__pycache__", "*.otf")
    shutil.copytree(ROOT / "pea_jax", tmp_path / "pea_jax", ignore=data)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder: Path) -> tuple[int, str]:
    """Exit status and report of lint-imports in a folder."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"], cwd=folder, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def test_the_package_keeps_the_contract(package):
    status, report = lint(package)
    assert status == 0, report
    assert " 0 broken." in report


def test_each_forbidden_import_is_named_and_nothing_else(package):
    for importer, imported in FORBIDDEN:
        file = package / f"{importer.replace('.', '/')}.py"
        file.write_text(f"{file.read_text('utf-8')}\nimport {imported}\n", "utf-8")
    (package / "pea_jax" / "utils.py").touch()  # a module without a layer
    status, report = lint(package)
    assert status == 1, report
    assert " 0 kept," in report, report
    # A chain of one link is a forbidden import; longer chains lead to one.
    direct = re.findall(r"^- +(\S+) -> (\S+) \(l\.\d+\)\n\n", report, re.MULTILINE)
    assert sorted(direct) == sorted(FORBIDDEN), report
    assert re.findall(r"not listed as layers:\n\n- (\S+)\n\n", report) == ["pea_jax.utils"]
