"""Reads and writes torch pickles; the only module that imports PyTorch.

Some models are published as torch pickles alone (pytorch_model.bin, open_clip_pytorch_model.bin,
clip_cn_*.pt, the adapters of PEA-Diffusion). A pickle is a program, so only content that PyTorch's
`weights_only` loader accepts is read: tensors in plain containers. PyTorch is optional: safetensors
files are read without it.
"""

import contextlib
import io
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save

from pea_jax.weights.errors import WeightsError

_ZIP = b"PK\x03\x04"
#: First bytes of torch.save before 1.6: protocol 2, and the magic number as a long integer.
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"

_ONLY_TENSORS = "expected a torch pickle of tensors alone, since others may run code when read"

#: Errors of torch.load for a broken or a foreign file.
_UNREADABLE = (
    RuntimeError,
    ValueError,
    OSError,
    EOFError,
    LookupError,
    AttributeError,
    TypeError,
    struct.error,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    SafetensorError,  # torch.load expects safetensors in a file of that suffix
)


def is_pickle(file: Path) -> bool:
    """Whether a file starts like one of torch.save; its name does not matter."""
    try:
        with file.open("rb") as stream:
            begin = stream.read(len(_LEGACY))
    except OSError:  # missing, or a folder: reported by the code that opens it
        return False
    return begin.startswith((_ZIP, _LEGACY))


def open_pickle(file: Path | str) -> "PickleHandle":
    """Opens a torch pickle whose tensors are read on access.

    A file in the zip format (torch 1.6, 2020) is mapped into memory, so that only accessed parts
    are read. An older file is read whole.

    Tensors nested in a "state_dict" (as in training checkpoints) are read from there; a prefix
    `module.` that all tensors share (from distributed training) is dropped.

    Args:
      file: written by torch.save from a mapping of names to tensors.

    Raises:
      WeightsError: PyTorch is not installed; the file is missing or broken; it has content that
        `weights_only` refuses, or other content than named tensors. One line each.
    """
    file = Path(file)
    return PickleHandle(_tensors(file, _unpickle(file)))


def serialize_pickle(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of a torch pickle: a state dict of `tensors`, for readers without safetensors.

    Raises:
      WeightsError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise WeightsError(
            "a torch pickle takes PyTorch to write: pip install torch (the CPU build will do)"
        ) from None
    from safetensors.torch import load

    ordered = {key: np.asarray(value, order="C") for key, value in tensors.items()}
    loaded = load(save(ordered))  # torch cannot convert bfloat16 from numpy
    stream = io.BytesIO()
    torch.save({key: loaded[key] for key in tensors}, stream)
    return stream.getvalue()


class PickleHandle(contextlib.AbstractContextManager):
    """The interface of `safetensors.safe_open` for a torch pickle; made by `open_pickle`."""

    def __init__(self, tensors: dict[str, Any]):
        self._tensors = tensors

    def __exit__(self, *exception: object) -> None:
        self._tensors = {}

    def keys(self) -> list[str]:
        """The names of the tensors."""
        return list(self._tensors)

    def get_slice(self, key: str) -> "PickleSlice":
        """One tensor, not read yet."""
        return PickleSlice(self._tensors[key])


class PickleSlice:
    """A tensor that is read when it is indexed."""

    def __init__(self, tensor: Any):
        self._tensor = tensor

    def get_shape(self) -> list[int]:
        """Its shape."""
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        """Its type by safetensors' name: F32 for float32, BF16 for bfloat16, I64 for int64."""
        name = str(self._tensor.dtype).removeprefix("torch.")
        return re.sub(r"^(bf|f|i|u)[a-z]+(?=\d)", r"\1", name).upper()

    def __getitem__(self, index: Any) -> np.ndarray:
        """A part, copied out of the file."""
        import torch

        part = self._tensor[index].contiguous()
        if part.dtype == torch.bfloat16:  # torch can't convert it to numpy
            return part.view(torch.int16).numpy().view(ml_dtypes.bfloat16).copy()
        return part.numpy().copy()


def _unpickle(file: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise WeightsError(
            f"{file}: a torch pickle, which takes PyTorch to read: pip install torch (the CPU "
            "build will do), or convert the file to safetensors"
        ) from None
    try:
        with file.open("rb") as stream:
            zipped = stream.read(len(_ZIP)) == _ZIP
        if zipped and _is_program(file):
            raise WeightsError(f"{file}: {_ONLY_TENSORS}, got a TorchScript program")
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except FileNotFoundError:
        raise WeightsError(f"{file}: no such weights file") from None
    except WeightsError:
        raise
    except _UNREADABLE as error:
        raise WeightsError(f"{file}: {_reason(str(error))}") from error


def _is_program(file: Path) -> bool:
    """Whether a zip file is from torch.jit.save, as OpenAI's CLIPs are."""
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _reason(message: str) -> str:
    """torch's error message in one line."""
    if found := re.search(r"GLOBAL (\S+)", message):
        return f"{_ONLY_TENSORS}, got {found[1]}"
    first = re.match(r"\s*([^\n]*?)\.?\s*(?:\. |\n|$)", message)[1]
    return f"not a whole torch pickle ({first or 'no reason given'})"


def _tensors(file: Path, content: Any) -> dict[str, Any]:
    import torch

    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(
            f"{file}: expected a mapping of names to tensors, got {_described(content)}"
        )
    foreign = [
        f"{name!r}: {_described(value)}"
        for name, value in content.items()
        if not (isinstance(name, str) and isinstance(value, torch.Tensor))
        or value.layout != torch.strided
        or value.is_quantized
    ]
    if foreign:
        raise WeightsError(f"{file}: expected names and dense tensors, got {'; '.join(foreign)}")
    wrapped = all(name.startswith("module.") for name in content)  # by distributed training
    return {
        name.removeprefix("module.") if wrapped else name: tensor.detach()
        for name, tensor in content.items()
    }


def _described(value: Any) -> str:
    return "nothing" if isinstance(value, Mapping) and not value else f"a {type(value).__name__}"
