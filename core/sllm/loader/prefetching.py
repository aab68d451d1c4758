"""Reads started before anybody asks for the tensors, typically before the heavy imports."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sllm.checkpoint.base import Checkpoint
    from sllm.loader.loading import Loading

_Signature = tuple[tuple[int, int, int], ...]
_lock = threading.Lock()
_waiting: dict[tuple[str, str], tuple[Loading, _Signature]] = {}


def _key(path: Path, device: str) -> tuple[str, str]:
    return str(path.resolve()), device


def _signature(checkpoint: Checkpoint) -> _Signature:
    """Identity, size and time of every data file: a model replaced meanwhile must not be served."""
    stats = [file.path.stat() for file in checkpoint.files.values()]
    return tuple((s.st_ino, s.st_size, s.st_mtime_ns) for s in stats)


def offer(path: Path, device: str, loading: Loading) -> None:
    """Keep `loading` for whoever asks for that path; an older one is cancelled."""
    entry = (loading, _signature(loading.checkpoint))
    with _lock:
        older = _waiting.pop(_key(path, device), None)
        _waiting[_key(path, device)] = entry
    if older is not None:
        older[0].close()


def take(path: Path, device: str) -> Loading | None:
    """The running read of that path, once; None when there is none or its files have changed."""
    with _lock:
        entry = _waiting.pop(_key(path, device), None)
    if entry is None:
        return None
    loading, before = entry
    try:
        unchanged = _signature(loading.checkpoint) == before
    except OSError:
        unchanged = False
    if not unchanged:
        loading.close()
        return None
    return loading


def discard() -> None:
    """Cancel and forget every read that nobody took."""
    with _lock:
        left = list(_waiting.values())
        _waiting.clear()
    for loading, _ in left:
        loading.close()


def _after_fork_in_child() -> None:
    """A read under way belongs to the parent, whose threads do not exist here: forget it.

    The native job knows that it is in another process and waits for nobody.
    """
    global _lock
    _lock = threading.Lock()
    _waiting.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
