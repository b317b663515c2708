"""Packaging of pea_jax."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (HERE / "pea_jax" / "__init__.py").read_text("utf-8"), re.MULTILINE
).group(1)
README = HERE / "README.md"

# `make test-lowest` runs the test suite with the oldest releases that these bounds allow.
DEPENDENCIES = [
    # The computation.
    "jax>=0.10.2",  # arrays, jit, sharding
    "flax>=0.12.8",  # NNX modules
    "optax>=0.2.8",  # AdamW, schedules, clipping
    "numpy>=2.0",  # everything on the host
    "jaxtyping>=0.3.7",  # shapes in public signatures (checked in tests only)
    # Data.
    "grain>=0.2.18",  # shuffling, shards, workers, checkpointable iterators
    "tensorflow-datasets>=4.9.10",  # ArrayRecord data sets; works without TensorFlow
    "array_record>=0.8",  # writes the records of data sets
    "importlib_resources>=6",  # tensorflow-datasets imports it but does not declare it
    "pillow>=11",  # decoding, resizing and writing images
    "pyarrow>=25",  # tables in Parquet
    "opencc>=1.4",  # traditional to simplified Chinese
    "regex>=2026.11",  # the scripts of Unicode
    # Files of trained models.
    "safetensors>=0.8",  # the only trusted format of weights
    "huggingface_hub>=1.31",  # downloads repositories by name
    "transformers>=5.16",  # tokenizers only, which need no PyTorch
    "tokenizers>=0.23",  # the export of a vocabulary that transformers has no class for
    "sentencepiece>=0.2",  # vocabularies of mT5 and AltCLIP, for transformers
    "protobuf>=6.33.5",  # reads those vocabularies; sentencepiece does not declare it
    "ftfy>=6",  # text repair before tokenization, as in open_clip
    # A run.
    "orbax-checkpoint>=0.12.8",  # asynchronous, sharded checkpoints
    "etils[epath]>=1.15",  # bucket paths for orbax and tensorflow-datasets
    "ml_collections>=1.1",  # configurations
    "absl-py>=2",  # overrides of config fields
    "rich>=13",  # progress bar and tables
    "tensorboardX>=2.6",  # TensorBoard events without TensorFlow
]

EXTRAS = {
    # Accelerators: jax with the plugin of the hardware.
    "tpu": ["jax[tpu]>=0.10.2"],
    "cuda": ["jax[cuda12]>=0.10.2"],
    # Models published only as torch pickles (weights/pickles.py); the CPU build suffices.
    "pickles": ["torch>=2.13"],
    # Workdirs and outputs in Google Cloud Storage: gs://bucket/run.
    "gcs": ["gcsfs>=2026.4"],
    # Hugging Face data sets as an origin of `pea-jax prepare`.
    "datasets": ["datasets>=5.2"],
    # Building data sets on Dataflow, Flink and the other runners of Apache Beam, which needs
    # protobuf 6; sentencepiece 0.2.3 needs protobuf 7.
    "beam": ["apache-beam>=2.77", "sentencepiece<0.2.3"],
    # `make test` and `make lint`, without PyTorch (see `parity`). `make test-beam` adds `beam`.
    "test": [
        "pytest>=8",
        "pytest-xdist>=3.6",  # one worker per core
        "beartype>=0.20",  # checks the jaxtyping annotations
        "ruff==0.17.6",  # pinned: a formatter's output changes between releases
        "import-linter>=2.3",  # the layers of pyproject.toml
        "pyyaml>=6",  # reads the manifests of launch/
        "scikit-image>=0.26",  # its wheel contains photographs
        "datasets>=5.2",  # tests/data/origins/test_sets.py
        # tests/test_gcs.py: an emulated bucket and its client.
        "gcp-storage-emulator>=2026.7",
        "gcsfs>=2026.4",
        # tests/tasks/preflight: the TPU compiler, which exists only for this platform.
        "jax[tpu]>=0.10.2; platform_system == 'Linux' and platform_machine == 'x86_64'",
    ],
    # The reference of tests/parity and the target of the export. The Linux build of PyTorch on PyPI
    # contains gigabytes of CUDA; the Makefile installs the CPU build.
    "parity": ["torch>=2.13", "diffusers>=0.42"],
    "dev": ["pre-commit>=4"],
}

setup(
    name="pea-jax",
    version=VERSION,
    description="PEA-Diffusion in JAX: teach a frozen text-to-image model another language",
    long_description=README.read_text("utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    packages=[*find_packages(include=["pea_jax", "pea_jax.*"]), "pea_jax.configs"],
    package_dir={"pea_jax.configs": "configs"},
    # Files that are read at run time: the shipped checkpoints, the words of the tinyworld captions,
    # the font of the sample grids, the scripts of languages, the configs of published models, and
    # what `pea-jax export` copies into a diffusers folder.
    package_data={
        "pea_jax": [
            "data/write/scripts.json",
            "tinyworld/checkpoints/**/*",
            "tinyworld/captions.json",
            "tinyworld/font*",
            "weights/templates/*",
            "weights/configs/**/*",
        ]
    },
    install_requires=DEPENDENCIES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["pea-jax = pea_jax.cli.main:main"]},
    zip_safe=False,
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
