"""Reads and writes torch pickles; the only module that imports PyTorch.

Some models are published as torch pickles alone (pytorch_model.bin, open_clip_pytorch_model.bin,
clip_cn_*.pt, the adapters of PEA-Diffusion). A pickle is a program, so only content that PyTorch's
`weights_only` loader accepts is read: tensors in plain containers. PyTorch is optional: safetensors
files are read without it.
"""

import io
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError

from pea_jax.weights.errors import WeightsError

_ZIP = b"PK\x03\x04"
#: First bytes of torch.save before 1.6: protocol 2, and the magic number as a long integer.
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"

#: torch's types -> safetensors'.
_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}

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
    return PickleHandle(file, _tensors(file, _unpickle(file)))


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
    stream = io.BytesIO()
    torch.save({key: _to_torch(value) for key, value in tensors.items()}, stream)
    return stream.getvalue()


class PickleHandle:
    """The interface of `safetensors.safe_open` for a torch pickle; made by `open_pickle`."""

    def __init__(self, file: Path, tensors: dict[str, Any]):
        self._file = file
        self._tensors = tensors

    def __enter__(self) -> "PickleHandle":
        return self

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
        """Its type by safetensors' name; by torch's name if safetensors has none."""
        name = str(self._tensor.dtype).removeprefix("torch.")
        return _DTYPES.get(name, name)

    def __getitem__(self, index: Any) -> np.ndarray:
        """A part, copied out of the file."""
        import torch

        part = self._tensor[index].contiguous()
        if part.dtype == torch.bfloat16:  # torch can't convert it to numpy
            return part.view(torch.int16).numpy().view(ml_dtypes.bfloat16).copy()
        return part.numpy().copy()


def _to_torch(value: np.ndarray) -> Any:
    import torch

    value = np.array(value, order="C")  # a copy, since torch may write to it
    if value.dtype == ml_dtypes.bfloat16:  # torch can't convert it from numpy
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)


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
        if not (isinstance(name, str) and isinstance(value, torch.Tensor) and _is_plain(value))
    ]
    if foreign:
        raise WeightsError(f"{file}: expected names and dense tensors, got {'; '.join(foreign)}")
    return dict(_unwrapped(content))


def _is_plain(tensor: Any) -> bool:
    return str(tensor.layout) == "torch.strided" and not tensor.is_quantized


def _described(value: Any) -> str:
    return "nothing" if isinstance(value, Mapping) and not value else f"a {type(value).__name__}"


def _unwrapped(tensors: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Drops the prefix of DataParallel and DistributedDataParallel."""
    wrapped = all(name.startswith("module.") for name in tensors)
    for name, tensor in tensors.items():
        yield name.removeprefix("module.") if wrapped else name, tensor.detach()
