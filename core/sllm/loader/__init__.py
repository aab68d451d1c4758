"""Moving a checkpoint's bytes into memory."""

from sllm.loader.api import load, open, prefetch, stream
from sllm.loader.base import FileRecord, LoadOptions, LoadRecord, Stage
from sllm.loader.lazy import LazyCheckpoint
from sllm.loader.loading import Loading

__all__ = [
    "FileRecord",
    "LazyCheckpoint",
    "LoadOptions",
    "LoadRecord",
    "Loading",
    "Stage",
    "load",
    "open",
    "prefetch",
    "stream",
]
