"""Classifier-free guidance and its rescaling.

The strengths are traced scalars: a change does not recompile.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def classifier_free_guidance(
    conditional: Float[Array, "B *rest"],
    unconditional: Float[Array, "B *rest"],
    scale: float | Float[Array, ""],
) -> Float[Array, "B *rest"]:
    """u + scale (c - u): away from the unconditional prediction (arXiv 2207.12598, eq. 6).

    In Stable Diffusion's convention, a `scale` of 1 is no guidance and 0 ignores the prompt.
    """
    return unconditional + scale * (conditional - unconditional)


def rescale(
    guided: Float[Array, "B *rest"],
    conditional: Float[Array, "B *rest"],
    amount: float | Float[Array, ""],
) -> Float[Array, "B *rest"]:
    """Restores the contrast of `conditional` in `guided` (arXiv 2305.08891, eq. 15 and 16).

    Guidance raises the standard deviation of a prediction, which over-exposes images.

    Args:
        guided: the prediction after guidance.
        conditional: the prediction before it.
        amount: 0 returns `guided` unchanged, 1 matches every sample's standard deviation to that
            of its conditional prediction; the paper uses 0.7.
    """
    axes = tuple(range(1, guided.ndim))
    contrast = jnp.std(conditional, axes, keepdims=True) / jnp.std(guided, axes, keepdims=True)
    return amount * (guided * contrast) + (1 - amount) * guided
