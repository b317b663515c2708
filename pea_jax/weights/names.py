"""Key and memory layout of a parameter in a Hugging Face checkpoint.

Attribute paths equal the checkpoint's keys, so the key of a parameter is its path with one rule
for the leaf (`key_of`), and its layout follows from that leaf and its rank (`axes_of`). `load` and
`save` both use the functions of this file, so they are inverse by construction. The table
`ALIASES` holds the keys of older checkpoints.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

ParameterPath = tuple[str | int, ...]
Aliases = Sequence[tuple[str, str]]
Stacks = Sequence[tuple[str, Sequence[str]]]

_WEIGHTS = frozenset({"kernel", "scale", "embedding"})

#: Rank of a kernel -> axes that transpose the file's tensor to it.
_KERNEL_AXES = {
    2: (1, 0),  # linear: [out, in] -> [in, out]
    3: (2, 1, 0),  # 1d convolution: [out, in, W] -> [W, in, out]
    4: (2, 3, 1, 0),  # 2d convolution: [out, in, H, W] -> [H, W, in, out]
}

#: Other names of the same tensors: (pattern, replacement), applied in order to the keys of both the
#: file and the module, so that either may have the prefix or not.
ALIASES: Aliases = (
    # The tower's own prefix, which transformers writes or omits by version and saved class.
    (r"^(text_model|roberta|bert)\.", ""),
    # BERT checkpoints converted from TensorFlow.
    (r"\.LayerNorm\.gamma$", ".LayerNorm.weight"),
    (r"\.LayerNorm\.beta$", ".LayerNorm.bias"),
    # T5's embedding; a file may hold the encoder's copy, `shared`, or both.
    (r"^encoder\.embed_tokens\.weight$", "shared.weight"),
    # The VAE's attention before diffusers 0.15.
    (r"\.attentions\.(\d+)\.query\.", r".attentions.\1.to_q."),
    (r"\.attentions\.(\d+)\.key\.", r".attentions.\1.to_k."),
    (r"\.attentions\.(\d+)\.value\.", r".attentions.\1.to_v."),
    (r"\.attentions\.(\d+)\.proj_attn\.", r".attentions.\1.to_out.0."),
)

#: Buffers with the values 0, 1, 2, ... that older releases saved beside the parameters.
IGNORED: Sequence[str] = (r"(.*\.)?position_ids",)

_CONVOLVED = re.compile(r"\.attentions\.\d+\.(to_q|to_k|to_v|to_out\.0)\.weight$")


def key_of(path: ParameterPath) -> str:
    """The checkpoint's key of a parameter: ("conv_in", "kernel") -> "conv_in.weight"."""
    *parents, leaf = (str(part) for part in path)
    return ".".join([*parents, "weight" if leaf in _WEIGHTS else leaf])


def canonical(key: str, aliases: Aliases = ALIASES) -> str:
    """`key` after every alias has been applied, in order."""
    for pattern, replacement in aliases:
        key = re.sub(pattern, replacement, key)
    return key


def unstacked(key: str, stacks: Stacks) -> Sequence[str]:
    r"""The names of the parameters that a tensor holds one after another along its first axis.

    Args:
      key: of the tensor.
      stacks: (pattern, replacements). PyTorch's attention stacks three projections:
        `(r"in_proj_(weight|bias)$", (r"q_proj.\1", r"k_proj.\1", r"v_proj.\1"))`.
    """
    for pattern, replacements in stacks:
        if re.search(pattern, key):
            return [re.sub(pattern, replacement, key) for replacement in replacements]
    return [key]


def axes_of(path: ParameterPath, rank: int) -> tuple[int, ...]:
    """Axes such that `tensor_of_the_file.transpose(axes)` is the parameter at `path`."""
    if path[-1] != "kernel":
        return tuple(range(rank))
    if rank not in _KERNEL_AXES:
        raise ValueError(f"{key_of(path)}: a kernel has rank 2, 3 or 4, got rank {rank}")
    return _KERNEL_AXES[rank]


def file_axes_of(path: ParameterPath, rank: int) -> tuple[int, ...]:
    """The inverse of `axes_of`: `parameter.transpose(file_axes)` is the file's tensor."""
    return tuple(int(axis) for axis in np.argsort(axes_of(path, rank)))


def file_shape(path: ParameterPath, shape: Sequence[int]) -> tuple[int, ...]:
    """The file's shape of a parameter of `shape`."""
    return tuple(shape[axis] for axis in file_axes_of(path, len(shape)))


def file_index(path: ParameterPath, index: Sequence[Any]) -> tuple[Any, ...]:
    """The index of `parameter[index]` in the file's tensor: one entry per axis, reordered."""
    return tuple(index[axis] for axis in file_axes_of(path, len(index)))


def is_unit_convolution(key: str, got: Sequence[int], expected: Sequence[int]) -> bool:
    """Whether `got` [out, in, 1, 1] is the linear layer [out, in] that `key` expects.

    The VAE's attention has 1x1 convolutions in the original Stable Diffusion code, and some
    converted files keep those shapes; the two are the same map.
    """
    unit = (*expected, 1, 1)
    return len(expected) == 2 and tuple(got) == unit and _CONVOLVED.search(key) is not None
