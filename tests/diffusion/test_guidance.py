"""Classifier-free guidance and its rescaling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pea_jax.diffusion.guidance import classifier_free_guidance, rescale


@pytest.fixture
def predictions(rng):
    return jnp.asarray(rng.standard_normal((2, 3, 4, 4, 2), np.float32))


def test_scale(predictions):
    conditional, unconditional = predictions
    difference = conditional - unconditional
    for scale, expected in ((0.0, unconditional), (1.0, conditional), (3.0, conditional)):
        if scale == 3.0:
            expected = conditional + 2 * difference
        guided = classifier_free_guidance(conditional, unconditional, scale)
        np.testing.assert_allclose(guided, expected, rtol=1e-5, atol=1e-5)


def test_rescale_restores_the_contrast_of_each_sample(predictions):
    conditional, unconditional = predictions
    guided = classifier_free_guidance(conditional, unconditional, 7.5)
    rescaled = rescale(guided, conditional, 1.0)
    for sample, reference in zip(rescaled, conditional, strict=True):
        np.testing.assert_allclose(np.std(sample), np.std(reference), rtol=1e-5)
    np.testing.assert_array_equal(rescale(guided, conditional, 0.0), guided)
    halfway = rescale(guided, conditional, 0.5)
    np.testing.assert_allclose(halfway, (guided + rescaled) / 2, rtol=1e-5, atol=1e-5)


def test_strengths_are_traced(predictions):
    @jax.jit
    def guide(conditional, unconditional, scale, amount):
        guided = classifier_free_guidance(conditional, unconditional, scale)
        return rescale(guided, conditional, amount)

    for scale, amount in ((1.0, 0.0), (5.0, 0.7), (7.5, 1.0)):
        guide(*predictions, scale, amount)
    assert guide._cache_size() == 1
