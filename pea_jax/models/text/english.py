"""The English text encoders that a base model was trained with."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Int

from pea_jax.models.conditioning import Conditioning


class EnglishText(nnx.Module):
    """Token ids -> the conditioning that the UNet was trained on, from one CLIP tower or two.

        SD 1.x, 2.x   tokens = the tower's last hidden state, after its final norm
        SDXL          tokens = hidden_states[-2] of both towers, side by side on the feature axis
                      pooled = the second tower's pooled vector, projected

    A tower gets the padding mask only if its config has use_attention_mask; other towers were
    trained to attend to padding like to any token. Source: SDXL (arXiv 2307.01952), section 2.1,
    and diffusers' pipelines of the two families.

    Args:
        towers: one, or the two of SDXL, where the second has a projection.
    """

    def __init__(self, towers: Sequence[nnx.Module]):
        if len(towers) not in (1, 2):
            raise ValueError(f"EnglishText: expected one tower or two, got {len(towers)}")
        self.towers = nnx.List(towers)

    def __call__(
        self, ids: Int[Array, "B L"], mask: Int[Array, "B L"] | Bool[Array, "B L"]
    ) -> Conditioning:
        """Encode prompts.

        Args:
            ids: [B, L]; for two towers [B, 2 L], first those of the first tower.
            mask: nonzero for tokens, 0 for padding; same shape.

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
        if len(outputs) == 1:
            return Conditioning(tokens=outputs[0].tokens)
        penultimate = [output.hidden_states[-2] for output in outputs]
        return Conditioning(jnp.concatenate(penultimate, axis=-1), pooled=outputs[-1].pooled)
