"""Classifier-free guidance and its rescaling.

The strengths are traced scalars: changing them compiles nothing.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def classifier_free_guidance(
    conditional: Float[Array, "B *rest"],
    unconditional: Float[Array, "B *rest"],
    scale: float | Float[Array, ""],
) -> Float[Array, "B *rest"]:
    """u + scale (c - u): away from the unconditional prediction (arXiv 2207.12598, eq. 6).

    In the convention of Stable Diffusion, where `scale` 1 is no guidance and 0 no prompt.
    """
    return unconditional + scale * (conditional - unconditional)


def rescale(
    guided: Float[Array, "B *rest"],
    conditional: Float[Array, "B *rest"],
    amount: float | Float[Array, ""],
) -> Float[Array, "B *rest"]:
    """Gives `guided` the contrast of `conditional` again (arXiv 2305.08891, eq. 15 and 16).

    Guidance raises the standard deviation of a prediction, which over-exposes images.

    Args:
        guided: the prediction after guidance.
        conditional: the prediction before it.
        amount: 0 leaves `guided` as it is, 1 gives every sample the standard deviation of its
            conditional prediction; 0.7 is the paper's choice.
    """
    axes = tuple(range(1, guided.ndim))
    contrast = jnp.std(conditional, axes, keepdims=True) / jnp.std(guided, axes, keepdims=True)
    return amount * (guided * contrast) + (1 - amount) * guided
