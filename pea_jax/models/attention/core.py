"""The attention core that every network shares: self, cross and causal, masked or not."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from pea_jax.models.attention import splash
from pea_jax.runtime import parallel

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")

#: From this length on, a kernel that stores no logits is worth its cost.
LONG = 1024

#: The widest head that cuDNN supports on every GPU (from Hopper on: 256).
CUDNN_HEAD_SIZE = 128


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
    mesh: Mesh | None = None,
) -> Float[Array, "B Q N K"]:
    """Scaled dot-product attention over the second axis.

        softmax(scale query key^T + bias + log(mask)) value

    Logits accumulate in float32 from operands of the compute dtype, which is exact for bfloat16
    products. Scale, bias and softmax act on those float32 logits, so every call does what a
    checkpoint's `upcast_attention` requests.

    Args:
        query: [B, Q, N, K].
        key: [B, L, N, K].
        value: [B, L, N, K].
        mask: True where a query attends to a key; of rank 4, broadcastable to [B, N, Q, L].
        bias: added to the logits (T5's positions); broadcastable like `mask`.
        scale: factor of the logits before the bias; None is 1 / sqrt(K).
        causal: query i attends only to keys 0..i.
        implementation: "xla" runs anywhere, "cudnn" on GPUs, "splash" on TPUs; "auto" lets
            `choose` decide for the platform that the program is compiled for.
        mesh: devices that B is split over; "splash" needs it, and "auto" reads the platform from
            it. None is one device of the default platform.

    Returns:
        [B, Q, N, K], of the dtype of `query`.

    Raises:
        ValueError: the implementation is unknown, or is not "auto" and does not support the inputs.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention implementation: expected one of {IMPLEMENTATIONS}, got {implementation!r}"
        )
    plain = mask is None and bias is None and scale is None and not causal
    if implementation == "auto":
        implementation = choose(
            parallel.platform(mesh),
            dtype=query.dtype,
            head_size=query.shape[-1],
            query_length=query.shape[1],
            key_length=key.shape[1],
            plain=plain,
        )
        if implementation == "splash" and not splash.divides(query.shape[0], mesh):
            implementation = "xla"
    elif implementation != "xla" and not plain:
        raise ValueError(
            f"{implementation} attention: expected no mask, bias, scale or causality, got one"
        )
    elif implementation == "cudnn":
        _check_cudnn(query)
    if implementation == "splash":
        return splash.splash_attention(query, key, value, mesh=mesh)
    return jax.nn.dot_product_attention(
        query, key, value, bias, mask, scale=scale, is_causal=causal, implementation=implementation
    )


def multi_head_attention(
    query: Float[Array, "B Q D"],
    key: Float[Array, "B L D"],
    value: Float[Array, "B L D"],
    *,
    heads: int,
    **options,
) -> Float[Array, "B Q D"]:
    """`dot_product_attention`, with its `options`, for heads that are concatenated in D."""
    split = (array.reshape(*array.shape[:2], heads, -1) for array in (query, key, value))
    return dot_product_attention(*split, **options).reshape(query.shape)


def choose(
    platform: str,
    *,
    dtype: DTypeLike,
    head_size: int,
    query_length: int,
    key_length: int,
    plain: bool,
) -> str:
    """The implementation that "auto" stands for.

    cuDNN on GPUs wherever it applies: 16-bit types, head sizes that are multiples of 8 up to
    `CUDNN_HEAD_SIZE`. Splash on TPUs for long self-attention, whose logits, [B, N, Q, L] in
    float32, are most of what a UNet stores and moves at high resolutions. XLA for everything else:
    masks, biases, the VAE's one head of 512, and on TPUs short sequences such as the 77 keys of
    cross-attention.

    Args:
        platform: "cpu", "gpu" or "tpu".
        dtype: type of query, key and value.
        head_size: K.
        query_length: Q.
        key_length: L.
        plain: whether there is no mask, bias, scale or causality.
    """
    if not plain:
        return "xla"
    if platform == "gpu" and not _cudnn_problems(dtype, head_size, CUDNN_HEAD_SIZE):
        return "cudnn"
    if platform == "tpu" and min(query_length, key_length) >= LONG and head_size <= 256:
        return "splash"
    return "xla"


def _cudnn_problems(dtype: DTypeLike, head_size: int, widest: int) -> list[str]:
    problems = []
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        problems.append(f"expected bfloat16 or float16, got {jnp.dtype(dtype)}")
    if head_size % 8 or head_size > widest:
        problems.append(f"expected heads of a multiple of 8 up to {widest}, got {head_size}")
    return problems


def _check_cudnn(query: Array) -> None:
    problems = _cudnn_problems(query.dtype, query.shape[-1], 2 * CUDNN_HEAD_SIZE)
    if jax.default_backend() != "gpu":
        problems.append(f"expected a GPU, got {jax.default_backend()}")
    if problems:
        raise ValueError(f"cudnn attention: {'; '.join(problems)}")
