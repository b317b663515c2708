"""Splash attention, a TPU kernel that stores no logits, with the interface of our networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

#: Queries, or keys, in one step of the kernel, for lengths that are multiples of it.
BLOCK = 512

#: Other lengths are padded to multiples of this, which is then the step of the queries.
STEP = 256

#: The largest step of the keys then: the data of one step must fit into on-chip memory.
MOST_KEYS = 1024

#: The name of the kernel's result and logsumexp for policies of `jax.checkpoint`.
RESULT = "splash_attention"


def splash_attention(
    query: Float[Array, "B Q N K"],
    key: Float[Array, "B L N K"],
    value: Float[Array, "B L N K"],
    *,
    mesh: Mesh | None = None,
    interpret: bool = False,
) -> Float[Array, "B Q N K"]:
    """softmax(query key^T / sqrt(K)) value; every query attends to every key.

    XLA does not partition the kernel, so it is mapped over the batch: each device of the mesh runs
    it on its own rows. Lengths that are not multiples of its steps are padded, and keys of the
    padding are masked.

    Args:
        query: [B, Q, N, K].
        key: [B, L, N, K].
        value: [B, L, N, K].
        mesh: devices that B is split over; None, or a mesh of one device, maps nothing.
        interpret: run the kernel on any platform, slowly; for tests.

    Returns:
        [B, Q, N, K], of the dtype of `query`.

    Raises:
        ValueError: the number of devices does not divide the batch.
    """
    if not divides(query.shape[0], mesh):
        raise ValueError(
            f"splash attention: expected a batch that {mesh.size} devices divide, "
            f"got {query.shape[0]}"
        )

    def attend(query: Array, key: Array, value: Array) -> Array:
        queries, keys = query.shape[1], key.shape[1]
        kernel = _kernel(query.shape[2], queries, keys, interpret)
        # The kernel applies no scale.
        scaled = (query.astype(jnp.float32) * query.shape[-1] ** -0.5).astype(query.dtype)
        heads_first = (_padded(array).swapaxes(1, 2) for array in (scaled, key, value))
        return jax.vmap(kernel)(*heads_first).swapaxes(1, 2)[:, :queries]

    if mesh is None or mesh.size == 1:
        return attend(query, key, value)
    rows = PartitionSpec(mesh.axis_names)
    return jax.shard_map(attend, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)(
        query, key, value
    )


def divides(batch: int, mesh: Mesh | None) -> bool:
    """Whether a batch can be split over the devices of a mesh."""
    return mesh is None or batch % mesh.size == 0


def padded_length(length: int) -> int:
    """The length to which the kernel pads a sequence."""
    step = STEP if length % BLOCK else BLOCK
    return -(-length // step) * step


def _padded(array: Float[Array, "B L N K"]) -> Float[Array, "B M N K"]:
    more = padded_length(array.shape[1]) - array.shape[1]
    return jnp.pad(array, ((0, 0), (0, more), (0, 0), (0, 0))) if more else array


def _kernel(heads: int, queries: int, keys: int, interpret: bool):
    mask = _mask(heads, queries, keys)
    q = BLOCK if queries % BLOCK == 0 else STEP
    kv = BLOCK if keys % BLOCK == 0 else _step_of_keys(padded_length(keys))
    sizes = splash_attention_kernel.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=kv,
        block_q_dq=q,
        block_kv_dq=kv,
    )
    return splash_attention_kernel.make_splash_mha(
        mask,
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=RESULT,
        interpret=interpret,
    )


def _step_of_keys(length: int) -> int:
    """The largest divisor of `length` that fills whole rows of a TPU's registers."""
    return max(size for size in range(128, MOST_KEYS + 1, 128) if length % size == 0)


@functools.cache
def _mask(heads: int, queries: int, keys: int) -> splash_attention_mask.MultiHeadMask:
    shape = padded_length(queries), padded_length(keys)
    if shape[1] == keys:
        mask = splash_attention_mask.FullMask(shape)
    else:
        mask = splash_attention_mask.NumpyMask(np.broadcast_to(np.arange(shape[1]) < keys, shape))
    return splash_attention_mask.MultiHeadMask([mask] * heads)
