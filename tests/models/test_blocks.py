"""Parts of a network whose numbers can be computed without another library."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pea_jax.models.blocks import GroupNorm, resize_nearest, timestep_embedding


def test_group_norm_keeps_its_digits_about_a_large_mean(rng):
    """E[x^2] - E[x]^2 in float32 would be off by several hundredths here."""
    x = 1000 + rng.standard_normal((2, 4, 4, 8)).astype(np.float32)
    grouped = x.astype(np.float64).reshape(2, 16, 2, 4)
    mean = grouped.mean(axis=(1, 3), keepdims=True)
    want = (grouped - mean) / np.sqrt(grouped.var(axis=(1, 3), keepdims=True) + 1e-5)
    got = GroupNorm(8, 2, 1e-5, rngs=nnx.Rngs(0))(jnp.asarray(x))
    np.testing.assert_allclose(got, want.reshape(x.shape), atol=1e-3)


@pytest.mark.parametrize("flip_sin_to_cos", [False, True])
@pytest.mark.parametrize("freq_shift", [0, 1])
def test_timestep_embedding(flip_sin_to_cos, freq_shift):
    """The last step keeps its phase: 999 radians at the first frequency, to float32's precision."""
    steps = np.array([0, 17, 999])
    angles = steps[:, None] * 10000.0 ** (-np.arange(4) / (4 - freq_shift))[None, :]
    halves = [np.sin(angles), np.cos(angles)]
    want = np.concatenate(halves[::-1] if flip_sin_to_cos else halves, axis=-1)
    got = timestep_embedding(
        jnp.asarray(steps), 8, flip_sin_to_cos=flip_sin_to_cos, freq_shift=freq_shift
    )
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("size", [(8, 6), (7, 5), (9, 7), (3, 11)])
def test_resize_nearest(size):
    """Pixel i of a row comes from floor(i * old / new), whether or not the size doubles."""
    x = np.arange(4 * 3, dtype=np.float32).reshape(1, 4, 3, 1)
    y = np.asarray(resize_nearest(jnp.asarray(x), size))
    for i in range(size[0]):
        for j in range(size[1]):
            assert y[0, i, j, 0] == x[0, i * 4 // size[0], j * 3 // size[1], 0]
