"""Checkpoints on disk: read any safetensors model, prepare one, save one, check one.

Everything is imported on first use: neither torch nor numpy nor the native module is
needed to look at a checkpoint.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sllm.checkpoint.base import Checkpoint, ChunkSums, DataFile, TensorInfo, View

if TYPE_CHECKING:
    from sllm.checkpoint.conversion import convert
    from sllm.checkpoint.inspection import inspect
    from sllm.checkpoint.reading import read_checkpoint
    from sllm.checkpoint.saving import save
    from sllm.checkpoint.verification import VerifyReport, verify

_HOME = {
    "VerifyReport": "sllm.checkpoint.verification",
    "convert": "sllm.checkpoint.conversion",
    "inspect": "sllm.checkpoint.inspection",
    "read_checkpoint": "sllm.checkpoint.reading",
    "save": "sllm.checkpoint.saving",
    "verify": "sllm.checkpoint.verification",
}

__all__ = [
    "Checkpoint",
    "ChunkSums",
    "DataFile",
    "TensorInfo",
    "VerifyReport",
    "View",
    "convert",
    "inspect",
    "read_checkpoint",
    "save",
    "verify",
]


def __getattr__(name: str) -> Any:
    try:
        module = _HOME[name]
    except KeyError:
        raise AttributeError(f"module 'sllm.checkpoint' has no attribute {name!r}") from None
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value
