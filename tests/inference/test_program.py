import jax
import jax.numpy as jnp
import numpy as np

from pea_jax.inference import program


def test_noise_is_standard_normal_and_of_its_seed_alone():
    noise = np.asarray(program.initial_noise(np.array([3, 5, 3], np.uint32), (16, 8, 4)))
    alone = np.asarray(program.initial_noise(np.array([5], np.uint32), (16, 8, 4)))
    np.testing.assert_array_equal(noise[0], noise[2])
    np.testing.assert_array_equal(noise[1], alone[0])
    first, second = noise[0].ravel(), noise[1].ravel()
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15
    assert abs(first.mean()) < 0.15
    assert abs(first.std() - 1) < 0.1


def test_the_solver_draws_from_another_stream_than_the_first_noise():
    seeds = jnp.arange(100, dtype=jnp.uint32)
    streams = [jax.random.key_data(program.keys(seeds, stream)) for stream in (0, 1)]
    assert len(np.unique(np.concatenate(streams), axis=0)) == 200
