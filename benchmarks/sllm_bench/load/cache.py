"""The page cache, brought into a known state before every sample and checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from sllm_bench.load.errors import BenchError

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
COLD_LIMIT = 0.01
"""Largest resident fraction of a file that still counts as cold."""
WARM_LIMIT = 0.99
"""Smallest resident fraction of a file that counts as warm."""
_READ = 8 << 20
_ATTEMPTS = 3


def may_drop() -> str | None:
    """None when the whole machine's page cache can be dropped, else the reason, for people."""
    if os.access(DROP_CACHES, os.W_OK):
        return None
    return f"{DROP_CACHES} is not writable: it takes root"


def make_cold(files: Sequence[Path], *, drop_all: bool) -> float:
    """Drop the files from the page cache; the whole machine's cache with `drop_all`.

    Returns:
        The largest resident fraction left.

    Raises:
        BenchError: they stay, so nothing measured would be cold.
    """
    left = 1.0
    for _ in range(_ATTEMPTS):
        _write_back(files)
        _evict(files)
        if drop_all:
            DROP_CACHES.write_text("3\n")
        left = _resident(files, max)
        if left <= COLD_LIMIT:
            return left
    raise BenchError(
        f"{left:.0%} of a file stays in the page cache",
        path=files[0],
        hint="a file system in memory or a process that maps the file keeps it: "
        "measure --warm only, or end that process",
    )


def make_warm(files: Sequence[Path]) -> float:
    """Read whatever of the files the page cache lacks.

    Returns:
        The smallest resident fraction afterwards.

    Raises:
        BenchError: the cache does not keep them.
    """
    buffer = bytearray(_READ)
    for path in files:
        if _resident([path], min) >= 1.0:
            continue
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    kept = _resident(files, min)
    if kept < WARM_LIMIT:
        raise BenchError(
            f"only {kept:.0%} of a file fits the page cache",
            path=files[0],
            hint="free memory or measure a smaller model",
        )
    return kept


def _resident(files: Iterable[Path], choose: Callable[[Iterable[float]], float]) -> float:
    from sllm import _native

    return choose(_native.residency(str(path)) for path in files)


def _write_back(files: Iterable[Path]) -> None:
    """Dirty pages cannot be dropped."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _evict(files: Iterable[Path]) -> None:
    from sllm import _native

    for path in files:
        _native.evict(str(path))
