"""What can go wrong in a measurement, beyond the loaders' own errors."""

from __future__ import annotations

from sllm.errors import SllmError


class BenchError(SllmError):
    """A measurement cannot be made as asked."""


class WorkerError(BenchError):
    """A contender's process failed, died or went silent."""
