import jax
import jax.numpy as jnp
import numpy as np

from pea_jax.runtime.compilations import Compilations


def test_each_program_counts_once():
    seen = Compilations()
    double = jax.jit(lambda y: jnp.sin(y) * 2.5)
    x = np.ones(3, np.float32)
    double(x)
    first = seen.count
    assert first >= 1
    assert seen.seconds > 0
    double(x + 1)
    assert seen.count == first
    double(np.ones(4, np.float32))
    assert seen.count > first
    assert Compilations().count == 0
