"""The base model's own text side, as its UNet knows it."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Int

from pea_jax.families.family import Family
from pea_jax.models.conditioning import Conditioning


class EnglishText(nnx.Module):
    """Token ids -> the conditioning that the UNet was trained on.

    A tower gets the padding mask only where its config asks for it: the others were trained to
    attend to padding as to any token.

    Args:
        family: combines the towers' outputs (`Family.condition`).
        towers: one for each of `Family.text_encoders`.

    Raises:
        ValueError: another number of towers.
    """

    def __init__(self, family: Family, towers: Sequence[nnx.Module]):
        if len(towers) != len(family.text_encoders):
            expected = len(family.text_encoders)
            raise ValueError(f"{family.name}: expected {expected} text towers, got {len(towers)}")
        self.family = family
        self.towers = nnx.List(towers)

    def __call__(
        self, ids: Int[Array, "B L"], mask: Int[Array, "B L"] | Bool[Array, "B L"]
    ) -> Conditioning:
        """Encode prompts.

        Args:
            ids: [B, L]; for two towers [B, 2 L], those of the first and then of the second.
            mask: nonzero for tokens, 0 for padding; laid out as `ids`.

        Returns:
            tokens [B, L, D], and pooled [B, P] or None.
        """
        outputs = [
            tower(own_ids, own_mask if tower.config.use_attention_mask else None)
            for tower, own_ids, own_mask in zip(
                self.towers,
                jnp.split(ids, len(self.towers), axis=1),
                jnp.split(mask, len(self.towers), axis=1),
                strict=True,
            )
        ]
        return self.family.condition(outputs)
