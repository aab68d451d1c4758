"""Bytes in a region become tensors. Importing this module does not import torch."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from sllm.checkpoint.base import TensorInfo, View
from sllm.checkpoint.dtypes import TORCH_NAMES, torch_shape
from sllm.errors import UnsupportedFormatError

if TYPE_CHECKING:
    import torch

    from sllm import _native


@cache
def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a safetensors dtype name.

    Raises:
        UnsupportedFormatError: this PyTorch has no such dtype.
    """
    import torch

    dtype = getattr(torch, TORCH_NAMES.get(name, ""), None)
    if not isinstance(dtype, torch.dtype):
        raise UnsupportedFormatError(
            f"PyTorch {torch.__version__} has no dtype for {name}",
            hint="read its bytes with `sllm.open(path).raw(name)`, or use a newer PyTorch",
        )
    return dtype


def as_bytes(region: _native.Region) -> torch.Tensor:
    """The region as a tensor over the same memory: uint8, shape (n,)."""
    from torch.utils.dlpack import from_dlpack

    return from_dlpack(region)


def carve(data: torch.Tensor, info: TensorInfo, start: int) -> torch.Tensor:
    """The tensor `info` out of a file's bytes, without a copy where its alignment allows.

    Args:
        data: uint8, shape (n,); ``data[0]`` is byte `start` of the file.
        info: where the tensor lies in the file.
        start: file offset of ``data[0]``.
    """
    import torch

    dtype = torch_dtype(info.dtype)
    shape = torch_shape(info.dtype, info.shape, tensor=info.name)
    if info.nbytes == 0:
        return torch.empty(shape, dtype=dtype, device=data.device)
    raw = data[info.offset - start : info.end - start]
    # safetensors promises no alignment; torch reads only aligned elements.
    if raw.data_ptr() % dtype.itemsize or raw.storage_offset() % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype).view(shape)


def look(base: torch.Tensor, view: View) -> torch.Tensor:
    """The tensor `view` describes, sharing `base`'s storage."""
    dtype = torch_dtype(view.dtype)
    flat = base.reshape(-1) if base.dim() == 0 else base.flatten()
    if flat.dtype != dtype:
        flat = flat.view(dtype)
    return flat.as_strided(view.shape, view.stride, flat.storage_offset() + view.storage_offset)
