"""`pea-jax prepare --latents`, and training from cached latents."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from pea_jax.assembly import data_factory, latent_encoder, trainer
from pea_jax.data import images, paths, schema
from pea_jax.data.latents import LatentSource
from pea_jax.data.read.loader import BadImagesError
from pea_jax.data.read.source import DatasetError
from pea_jax.data.write import builder
from pea_jax.models.latents import LatentCodec
from pea_jax.runtime import parallel
from pea_jax.tasks import prepare, train
from pea_jax.weights.bases import BaseSpec, load_vae, read_base_config
from tests import tiny
from tests.data import sets

SIZES = ((16, 16, 0.5), (16, 32, 0.5))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Folders of the frozen models. Not to be written to."""
    return tiny.write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """Holds the data set "few"."""
    return tiny.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(latent_encoder, "PART_ROWS", 10)


def config(models, data_dir, **changes):
    return tiny.config(models, data_dir, **{"data__latents": True, **changes})


def make(made) -> LatentSource:
    prepare.prepare(made, latents=True)
    source = data_factory.open_source(made, "cpu")
    assert isinstance(source, LatentSource)
    return source


def photographs(folder: Path, count=29, damaged=(5, 17)) -> Path:
    """A set "photos" of noise in several aspects, some of it unreadable."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        height, width = (20, 24) if number % 3 else (20, 41)
        image = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(image, "PNG")
        rows.append(
            sets.row(
                number,
                ["zh", "ja"][number % 2],
                number % 4 > 1,
                image=image.getvalue()[: 60 if number in damaged else None],
                height=height,
                width=width,
            )
        )
    builder.build(folder, "photos", {"train": [lambda: rows[:11], lambda: rows[11:]]})
    return folder


def test_every_row_has_the_moments_of_what_training_sees(models, tmp_path, monkeypatch):
    """In the order of the pixel set, by bucket and both ways round; unreadable ones are counted. No
    more rows are held than a chunk has."""
    vae = read_base_config(models / "sd").vae
    numbers = 2 * vae.latent_channels * 16 * 32 // vae.downsampling_factor**2 * 2
    monkeypatch.setattr(latent_encoder, "CHUNK_BYTES", 4 * 4 * numbers)
    held, encoded_chunk = [], latent_encoder._encoded_chunk

    def noted(pixels, rows, *arguments):
        held.append(len(rows))
        return encoded_chunk(pixels, rows, *arguments)

    monkeypatch.setattr(latent_encoder, "_encoded_chunk", noted)
    made = config(
        models,
        photographs(tmp_path),
        data__dataset="photos",
        data__languages=("zh", "ja"),
        data__buckets=SIZES,
        data__random_flip=True,
        data__max_bad_images=2,
    )
    source = make(made)
    assert held == [4, 4, 2, 4, 4, 2, 4, 4, 1]
    pixels = data_factory.open_split("photos", tmp_path)
    numbers = [number for number in range(len(pixels)) if number not in (5, 17)]
    assert len(source) == len(numbers)
    report = json.loads(paths.report_file(source.folder).read_text())["train"]
    assert report["rejected"] == {images.UNREADABLE: 2}
    assert report["examples"] == {images.UNREADABLE: ["row5", "row17"]}
    assert len(report["files"]) == 3
    graph, state = nnx.split(load_vae(BaseSpec(models / "sd")))
    moments_of = jax.jit(lambda pixels: LatentCodec(nnx.merge(graph, state)).moments(pixels))
    for number, place in zip(numbers, range(len(source)), strict=True):
        row, kept = pixels[number], source[place]
        for name in schema.AnyRow.__annotations__:
            assert getattr(kept, name) == getattr(row, name)
        size = (16, 32) if row.width == 41 else (16, 16)
        assert kept.size == size
        assert kept.crop == images.corner(row.height, row.width, *size)
        for moments, view in [(kept.moments, None), (kept.mirrored, images.View(flipped=True))]:
            seen = images.decode(row.image, *size, view or images.CENTRE)
            wanted = np.stack(moments_of(seen[None]))[:, 0]
            assert moments.shape == wanted.shape
            np.testing.assert_allclose(moments, wanted, rtol=1e-4, atol=1e-5)


def test_too_many_unreadable_pictures_end_it(models, tmp_path):
    made = config(
        models,
        photographs(tmp_path),
        data__dataset="photos",
        data__languages=("zh", "ja"),
        data__max_bad_images=1,
    )
    with pytest.raises(BadImagesError, match=r"2 images in .*photos.* at most 1 are accepted"):
        prepare.prepare(made, latents=True)
    # What is done stays: with one more it is accepted.
    made.data.max_bad_images = 2
    assert len(make(made)) == 27


def losses(made, workdir) -> list[dict]:
    train.train(made, workdir)
    return tiny.lines(workdir)


def assert_same(lines, others, rtol):
    assert len(lines) == len(others) == 4
    for line, other in zip(lines, others, strict=True):
        assert line.keys() == other.keys()
        for name in line:
            np.testing.assert_allclose(line[name], other[name], rtol=rtol, err_msg=name)


def test_training_from_latents_is_training_from_pixels(models, data_dir, tmp_path):
    """On eight devices; tests/test_several.py has one device, and hosts. The VAE's noise is drawn
    for both alike, and every row meets the same."""
    wanted = losses(config(models, data_dir, data__latents=False), tmp_path / "pixels")
    made = config(models, data_dir)
    make(made)
    assert_same(losses(made, tmp_path / "latents"), wanted, 2e-5)


def test_a_run_has_no_vae_encoder_and_batches_as_they_are_foretold(models, data_dir):
    made = config(models, data_dir)
    make(made)
    built = trainer.build(made)
    batch = parallel.to_global(next(built.loader), built.mesh)
    built.loader.close()
    rows = {"native": 8, "parallel": 8}
    abstract = trainer.make_trainer(made, built.mesh, abstract=True)

    def described(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), tree)

    assert described(trainer.batch_shapes(abstract, rows, (16, 16))) == described(batch)
    assert "pixels" not in batch["native"]

    def arguments_and_convolutions(latents):
        each = config(models, data_dir, data__latents=latents)
        made = trainer.make_trainer(each, built.mesh, abstract=True)
        shapes = trainer.batch_shapes(made, rows, (16, 16))
        return _counts(made.step.lower(made.state, made.frozen, shapes, made.key))

    graph, state = nnx.split(abstract.pipeline.base.vae)
    encode = jax.jit(lambda state, pixels: LatentCodec(nnx.merge(graph, state)).moments(pixels))
    encoder = _counts(encode.lower(state, np.zeros((1, 16, 16, 3), np.uint8)))
    more = np.subtract(arguments_and_convolutions(False), arguments_and_convolutions(True))
    # The pixels themselves are an argument of either program, under another name.
    assert more.tolist() == [encoder[0] - 1, encoder[1]]
    assert encoder[1] > 5


def _counts(lowered) -> tuple[int, int]:
    """Arguments that a program uses, and its convolutions."""
    text = lowered.as_text()
    (main,) = [line for line in text.splitlines() if "func.func public @main" in line]
    return main.count("%arg"), text.count("stablehlo.convolution")


def test_latents_of_another_vae_are_refused(models, data_dir, tmp_path):
    """One bit of one weight makes it another; so does its config."""
    made = config(models, data_dir)
    make(made)
    others = shutil.copytree(models, tmp_path / "models")
    file = others / "sd" / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    message = r'^no latents of few .*vae: "\w{16}" there, "\w{16}" now'
    with pytest.raises(DatasetError, match=message):
        trainer.build(config(others, data_dir))
    content[-1] ^= 1
    file.write_bytes(content)
    assert data_factory.open_source(config(others, data_dir), "cpu").folder
    values = json.loads((file.parent / "config.json").read_text())
    (file.parent / "config.json").write_text(json.dumps(values | {"scaling_factor": 0.5}))
    with pytest.raises(DatasetError, match=message):
        trainer.build(config(others, data_dir))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__image_size": 32}, "sizes.0.0: 16 there, 32 now"),
        ({"data__random_flip": True}, "flips: false there, true now"),
        ({"data__latents_dtype": "float16"}, '"float32" there, "float16" now'),
        ({"model__dtype": "bfloat16"}, 'compute: "float32" there, "bfloat16" now'),
        ({"data__native_batch_size": 0}, 'parts.0: "native" there, "parallel" now'),
        ({"data__crop": "random"}, "a random crop is another picture at every step"),
    ],
)
def test_latents_that_show_something_else_are_refused(models, data_dir, changes, message):
    make(config(models, data_dir))
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer.build(config(models, data_dir, **changes))


def test_the_pixels_are_not_needed_but_must_be_the_same_where_they_are(models, data_dir, tmp_path):
    made = config(models, shutil.copytree(data_dir, tmp_path / "data"))
    source = make(made)
    shutil.rmtree(tmp_path / "data" / "few")
    trainer.build(made).loader.close()
    with pytest.raises(DatasetError, match="no data set 'few'"):
        prepare.prepare(made, latents=True)
    rows = [sets.row(number, native=number % 2 == 1) for number in range(40)]
    builder.build(tmp_path / "data", "few", {"train": [lambda: rows]})
    for refused in (lambda: trainer.build(made), lambda: prepare.prepare(made, latents=True)):
        with pytest.raises(ValueError, match=r'pixels: "\w{16}" there, "\w{16}" now') as error:
            refused()
        assert str(source.folder) in str(error.value)


KILLED = """
import os, signal, sys
from pathlib import Path
from pea_jax.assembly import latent_encoder
from pea_jax.tasks import prepare
from tests import tiny

latent_encoder.PART_ROWS = 10
encoded, parts = latent_encoder._encoded, []

def killed(*arguments):
    parts.append(1)
    for number, row in enumerate(encoded(*arguments)):
        if len(parts) == 3 and number == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        yield row

latent_encoder._encoded = killed
made = tiny.config(Path(sys.argv[1]), Path(sys.argv[2]), data__latents=True)
prepare.prepare(made, latents=True)
"""


def test_a_killed_one_goes_on_and_makes_the_same_set(models, data_dir, tmp_path, monkeypatch):
    made = config(models, shutil.copytree(data_dir, tmp_path / "data"))
    shutil.rmtree(next((tmp_path / "data").glob("few_latents_*")), ignore_errors=True)
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": os.environ["XLA_FLAGS"]}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(models), str(tmp_path / "data")],
        env={**os.environ, **flags},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        timeout=400,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    with pytest.raises(DatasetError, match="not finished: continue with pea-jax prepare --latents"):
        trainer.build(made)
    seen = []
    encoded = latent_encoder._encoded
    monkeypatch.setattr(
        latent_encoder, "_encoded", lambda *arguments: seen.append(1) or encoded(*arguments)
    )
    again = make(made)
    assert len(seen) == 3  # of five parts
    straight = make(config(models, tiny.write_data(tmp_path / "straight")))
    files = [
        {
            file.relative_to(source.folder): file.read_bytes()
            for file in source.folder.rglob("*")
            if file.is_file()
        }
        for source in (again, straight)
    ]
    assert files[0].keys() == files[1].keys()
    assert files[0] == files[1]
