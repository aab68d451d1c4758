"""Checkpoints on disk: read any safetensors model, prepare one, save one, check one.

Everything is imported on first use: neither torch nor numpy nor the native module is
needed to look at a checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sllm._lazy import lazy_names
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


__getattr__ = lazy_names(__name__, _HOME)
