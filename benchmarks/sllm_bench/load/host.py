"""Tensors as plain bytes in host memory, whoever made them."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Bytes = npt.NDArray[np.uint8]

PAGE = 4096

# PyTorch's names in the words of the file format.
_DTYPES = {
    "bfloat16": "BF16",
    "bool": "BOOL",
    "complex64": "C64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "int8": "I8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "uint8": "U8",
}


@dataclass(frozen=True, slots=True)
class HostTensor:
    """One loaded tensor.

    Attributes:
        dtype: safetensors dtype name.
        shape: dimensions.
        data: its bytes where the loader put them, uint8, shape (n,); valid while the loader's
            own result is alive.
    """

    dtype: str
    shape: tuple[int, ...]
    data: Bytes


def from_torch(tensors: Mapping[str, torch.Tensor]) -> dict[str, HostTensor]:
    """The bytes behind CPU tensors, not copied (a view that is not contiguous is)."""
    found = {}
    for name, tensor in tensors.items():
        dense = tensor.detach().contiguous()
        nbytes = dense.numel() * dense.element_size()
        if nbytes:
            # By address: NumPy has no bfloat16 and no float8.
            raw = (ctypes.c_uint8 * nbytes).from_address(dense.data_ptr())
            data = np.frombuffer(memoryview(raw), dtype=np.uint8)
        else:
            data = np.empty(0, dtype=np.uint8)
        dtype = str(tensor.dtype).removeprefix("torch.")
        found[name] = HostTensor(_DTYPES.get(dtype, dtype), tuple(tensor.shape), data)
        if dense.data_ptr() != tensor.data_ptr():
            found[name] = HostTensor(found[name].dtype, found[name].shape, data.copy())
    return found


def touch(arrays: Iterable[Bytes]) -> int:
    """Read one byte of every page, by one thread and in address order.

    Address order is what serves a mapping best: the kernel's read-ahead sees a sequential reader.

    Returns:
        A sum that keeps the reads from being left out.
    """
    total = 0
    for array in sorted((a for a in arrays if a.size), key=lambda a: a.ctypes.data):
        total += int(array[::PAGE].sum(dtype=np.uint64))
    return total


def fault_in(buffer: Any) -> float:
    """Write one byte of every page of a writable buffer, so that its memory exists.

    Returns:
        Seconds that took.
    """
    array = np.frombuffer(buffer, dtype=np.uint8)
    begin = time.perf_counter()
    array[::PAGE] = 0
    return time.perf_counter() - begin
