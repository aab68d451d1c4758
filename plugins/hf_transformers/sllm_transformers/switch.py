"""Whether loads are taken over, and with which options."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from typing import Any

from sllm.errors import OptionError
from sllm.loader.base import LoadOptions

_lock = threading.Lock()
_process_wide: LoadOptions | None = None
_open_scopes = 0
_scoped: ContextVar[LoadOptions | None] = ContextVar("sllm_transformers_options", default=None)


def parse_options(options: Mapping[str, Any]) -> LoadOptions:
    """Check options by name and value.

    Raises:
        OptionError: unknown name, or a value the option cannot take.
    """
    known = [field.name for field in fields(LoadOptions)]
    for name in options:
        if name not in known:
            raise OptionError(f"unknown option {name!r}", hint=f"use one of {', '.join(known)}")
    return LoadOptions(**options)


def set_process_wide(options: LoadOptions | None) -> None:
    """Switch on with `options`, or off with None, for every thread."""
    global _process_wide
    with _lock:
        _process_wide = options


@contextmanager
def scope(options: LoadOptions) -> Iterator[None]:
    """Switch on for the current context."""
    global _open_scopes
    with _lock:
        _open_scopes += 1
    token = _scoped.set(options)
    try:
        yield
    finally:
        _scoped.reset(token)
        with _lock:
            _open_scopes -= 1


def active_options() -> LoadOptions | None:
    """The innermost options in force here; None when switched off."""
    return _scoped.get() or _process_wide


def in_use() -> bool:
    """Whether any thread may still want loads taken over."""
    with _lock:
        return _process_wide is not None or _open_scopes > 0
