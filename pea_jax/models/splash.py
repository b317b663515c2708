"""Splash attention, the TPU kernel that keeps no logits, in the form that the networks call it."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

#: Queries and keys of one step of the kernel. Lengths must be multiples of it.
BLOCK = 512

#: The name that a policy of `jax.checkpoint` knows the kernel's result by, and its logsumexp.
RESULT = "splash_attention"


def splash_attention(
    query: Float[Array, "B Q N K"],
    key: Float[Array, "B L N K"],
    value: Float[Array, "B L N K"],
    *,
    mesh: Mesh | None = None,
    interpret: bool = False,
) -> Float[Array, "B Q N K"]:
    """softmax(query key^T / sqrt(K)) value, every query looking at every key.

    The kernel is not partitioned by XLA, so it is mapped over the batch: each device of the mesh
    runs it on its own rows.

    Args:
        query: [B, Q, N, K], Q a multiple of `BLOCK`.
        key: [B, L, N, K], L a multiple of `BLOCK`.
        value: [B, L, N, K].
        mesh: of the devices that B is split over; None or a mesh of one maps nothing.
        interpret: run the kernel's program anywhere, slowly; for tests.

    Returns:
        [B, Q, N, K], of the dtype of `query`.

    Raises:
        ValueError: a length or a batch that does not divide.
    """
    lengths = {"query": query.shape[1], "key": key.shape[1]}
    problems = [
        f"{name}: expected a length that {BLOCK} divides, got {length}"
        for name, length in lengths.items()
        if length % BLOCK
    ]
    if not divides(query.shape[0], mesh):
        problems.append(f"expected a batch that {mesh.size} devices divide, got {query.shape[0]}")
    if problems:
        raise ValueError(f"splash attention: {'; '.join(problems)}")

    def attend(query: Array, key: Array, value: Array) -> Array:
        kernel = _kernel(query.shape[2], query.shape[1], key.shape[1], interpret)
        # The kernel applies no scale.
        scaled = (query.astype(jnp.float32) * query.shape[-1] ** -0.5).astype(query.dtype)
        heads_first = (array.swapaxes(1, 2) for array in (scaled, key, value))
        return jax.vmap(kernel)(*heads_first).swapaxes(1, 2)

    if mesh is None or mesh.size == 1:
        return attend(query, key, value)
    rows = PartitionSpec(mesh.axis_names)
    return jax.shard_map(attend, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)(
        query, key, value
    )


def divides(batch: int, mesh: Mesh | None) -> bool:
    """Whether a batch can be split over the devices of a mesh."""
    return mesh is None or batch % mesh.size == 0


def _kernel(heads: int, queries: int, keys: int, interpret: bool):
    mask = _mask(heads, queries, keys)
    sizes = splash_attention_kernel.BlockSizes(
        block_q=BLOCK,
        block_kv=BLOCK,
        block_kv_compute=BLOCK,
        block_q_dkv=BLOCK,
        block_kv_dkv=BLOCK,
        block_kv_dkv_compute=BLOCK,
        block_q_dq=BLOCK,
        block_kv_dq=BLOCK,
    )
    return splash_attention_kernel.make_splash_mha(
        mask,
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=RESULT,
        interpret=interpret,
    )


@functools.cache
def _mask(heads: int, queries: int, keys: int) -> splash_attention_mask.MultiHeadMask:
    return splash_attention_mask.MultiHeadMask(
        [splash_attention_mask.FullMask((queries, keys)) for _ in range(heads)]
    )
