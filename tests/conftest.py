"""What holds for every test: eight CPU devices, strict numerics, checked shapes.

The environment is set before anything imports jax, which reads it once.
"""

import atexit
import importlib.util
import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
).strip()
# No test may reach for the network, however the code under test asks for a file.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# diffusers copies the code of every folder that it loads into one file: one each for the workers.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="pea_jax_tests_")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)

import jax
import jaxtyping
import numpy as np
import pytest

import tests.typecheck  # noqa: F401  (the import hook below refers to it by name)

# A [B] added to a [B, C] by an accident of broadcasting is a bug that no shape check sees.
jax.config.update("jax_numpy_rank_promotion", "raise")

# Every annotation of the package is checked at run time, and so is every shape in it.
jaxtyping.install_import_hook("pea_jax", "tests.typecheck.check")

try:
    import torch
except ModuleNotFoundError:
    # tests/parity skips itself, and says so, with pytest.importorskip.
    pass
else:
    # The workers of a test run share the cores: one thread each.
    torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests of Apache Beam where it is not installed; `make test-beam` installs it."""
    if item.get_closest_marker("beam") and importlib.util.find_spec("apache_beam") is None:
        pytest.skip("apache-beam is not installed: `make test-beam` runs this test")


@pytest.fixture
def rng() -> np.random.Generator:
    """A source of test data that is the same in every run."""
    return np.random.default_rng(0)


@pytest.fixture
def key() -> jax.Array:
    """A jax key that is the same in every run."""
    return jax.random.key(0)
