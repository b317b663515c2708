"""The attention core that every network shares: self, cross and causal, masked or not."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from pea_jax.models.attention import splash
from pea_jax.runtime import parallel

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")

#: From so many keys on, the logits that xla keeps are worth a kernel that keeps none.
LONG = 1024

#: The widest head that cuDNN takes on every GPU (from Hopper on it takes 256).
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
        implementation: "xla" runs anywhere; "cudnn" is of GPUs and "splash" of TPUs; "auto" goes by
            `choose` for the platform that the program is compiled for.
        mesh: of the devices that B is split over, which "splash" must know, and by which "auto"
            knows the platform; None for one device of the default one.

    Returns:
        [B, Q, N, K], of the dtype of `query`.

    Raises:
        ValueError: the implementation is unknown, or was asked for by name and can't do this.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention implementation: expected one of {IMPLEMENTATIONS}, got {implementation!r}"
        )
    plain = mask is None and bias is None and scale is None and not causal
    xla = functools.partial(
        jax.nn.dot_product_attention,
        mask=mask,
        bias=bias,
        scale=scale,
        is_causal=causal,
        implementation="xla",
    )
    cudnn = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    kernel = functools.partial(splash.splash_attention, mesh=mesh)
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
    return {"xla": xla, "cudnn": cudnn, "splash": kernel}[implementation](query, key, value)


def choose(
    platform: str,
    *,
    dtype: DTypeLike,
    head_size: int,
    query_length: int,
    key_length: int,
    plain: bool,
) -> str:
    """The implementation that "auto" takes.

    cuDNN on GPUs wherever it can: 16 bits, heads of a multiple of 8 up to `CUDNN_HEAD_SIZE`. Splash
    on TPUs for long self-attention: its logits, [B, N, Q, L] in float32, are most of what a UNet
    keeps and moves at high resolutions. Short sequences, masks, biases and the VAE's one head of
    512 are xla's everywhere, and so are cross-attention's 77 keys on TPUs.

    Args:
        platform: "cpu", "gpu" or "tpu".
        dtype: of query, key and value.
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
