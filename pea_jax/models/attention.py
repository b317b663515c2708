"""The attention core that every network shares: self, cross and causal, masked or not."""

import jax
from jaxtyping import Array, Bool, Float

IMPLEMENTATIONS = ("auto", "xla")


def dot_product_attention(
    query: Float[Array, "B Q N K"],
    key: Float[Array, "B L N K"],
    value: Float[Array, "B L N K"],
    *,
    mask: Bool[Array, "#B #N #Q #L"] | None = None,
    bias: Float[Array, "#B #N #Q #L"] | None = None,
    scale: float | None = None,
    causal: bool = False,
    implementation: str = "auto",
) -> Float[Array, "B Q N K"]:
    """Scaled dot-product attention over the second axis.

        softmax(scale query key^T + bias + log(mask)) value

    Logits accumulate in float32 from operands of the compute dtype, which is exact for bfloat16
    products, and the scale, bias and softmax act on those float32 logits: what `upcast_attention`
    asks for in a checkpoint's config holds for every call.

    Args:
        query: [B, Q, N, K].
        key: [B, L, N, K].
        value: [B, L, N, K].
        mask: True where a query may look at a key; broadcastable to [B, N, Q, L], always of rank 4.
        bias: what is added to the logits (T5's positions); broadcastable as `mask` is.
        scale: of the logits before that; None is 1 / sqrt(K).
        causal: query i sees keys 0..i only.
        implementation: one of `IMPLEMENTATIONS`; "auto" is "xla", which runs anywhere.

    Returns:
        [B, Q, N, K], of the dtype of `query`.

    Raises:
        ValueError: the implementation is unknown.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention implementation: expected one of {IMPLEMENTATIONS}, got {implementation!r}"
        )
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        bias=bias,
        mask=mask,
        scale=scale,
        is_causal=causal,
        implementation="xla",
    )
