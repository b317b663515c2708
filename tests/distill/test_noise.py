"""What is drawn: the right distributions, and nothing but the row decides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pea_jax.distill.batch import BatchLayout
from pea_jax.distill.losses import DistillSettings
from pea_jax.distill.noise import draw
from pea_jax.runtime import parallel
from tests.distill import fakes

SHAPE = (3, 3, 4)
SETTINGS = DistillSettings(prompt_drop=0.25, noise_offset=0.5)


@pytest.fixture(scope="module")
def many():
    """The draws of 4,096 rows."""
    layout = BatchLayout({"native": 1024, "parallel": 3072})
    return jax.jit(lambda key: draw(key, layout, SHAPE, fakes.schedule(), SETTINGS))(
        jax.random.key(3)
    )


FEW = BatchLayout({"native": 8, "parallel": 24}, data_shards=8)


@jax.jit
def draw_few(key):
    return draw(key, FEW, SHAPE, fakes.schedule(), SETTINGS)


@pytest.fixture(scope="module")
def few():
    """The draws of 32 rows that lie in eight shards."""
    return draw_few(jax.random.key(3))


def close(got, wanted):
    """Equal but for the rounding of another program."""
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_noise_is_standard_normal_with_an_offset_a_channel(many):
    posterior, noise = np.asarray(many.posterior), np.asarray(many.noise)
    assert posterior.shape == noise.shape == (4096, *SHAPE)
    np.testing.assert_allclose(
        [posterior.mean(), posterior.var(), noise.mean(), noise.var()], [0, 1, 0, 1.25], atol=0.02
    )
    # What the values of one channel share is the offset alone: its variance is 0.5^2.
    offsets = np.mean(noise, axis=(1, 2))
    np.testing.assert_allclose(offsets.var(), 0.25 + 1 / 9, atol=0.02)
    channels = np.corrcoef(offsets.T)[~np.eye(4, dtype=bool)]
    assert np.abs(channels).max() < 0.06, "the offsets of two channels are not independent"
    across = np.corrcoef(posterior.ravel(), noise.ravel())[0, 1]
    assert abs(across) < 0.02, "posterior and noise are not independent"


def test_timesteps_are_uniform_over_the_whole_schedule(many):
    timesteps = np.asarray(many.timesteps)
    assert timesteps.dtype == np.int32
    assert timesteps.min() < 5
    assert 994 < timesteps.max() <= 999
    counts = np.histogram(timesteps, bins=10, range=(0, 1000))[0]
    assert np.abs(counts / 409.6 - 1).max() < 0.2


def test_prompts_are_dropped_at_the_given_rate(many):
    assert abs(float(np.mean(many.dropped)) - 0.25) < 0.02


def test_no_two_rows_share_their_noise(many):
    """Rows of the same place in the two parts would, if the part were left out of the key."""
    first = np.asarray(many.noise)[:, 0, 0, 0]
    assert len(np.unique(first)) == len(first)


def test_a_row_draws_the_same_in_any_batch(many, few):
    """Else the run would depend on the device count, or a larger native part would move all."""
    for name, start in (("native", 0), ("parallel", 1024)):
        part = FEW.take(few, name)
        wanted = jax.tree.map(lambda leaf: np.asarray(leaf)[start : start + FEW.rows[name]], many)  # noqa: B023
        jax.tree.map(close, part, wanted)


def test_draws_do_not_depend_on_the_devices(few):
    mesh = parallel.make_mesh(data=4, fsdp=2)
    draw_spread = jax.jit(draw_few, out_shardings=parallel.batch_sharding(mesh))
    spread = draw_spread(jax.random.key(3))
    assert len(spread.noise.sharding.device_set) == 8
    jax.tree.map(close, spread, few)


def test_another_key_draws_other_values(few):
    other = draw_few(jax.random.key(4))
    assert not jnp.any(other.noise == few.noise)
