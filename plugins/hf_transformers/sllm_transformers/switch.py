"""Whether loads are taken over, and with which options.

It is on the way of every interpreter that `SLLM_TRANSFORMERS` is set for, so it imports the loader
only when there are options to check.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sllm.loader.base import LoadOptions

Options = Mapping[str, Any]
"""Fields of `sllm.LoadOptions`, checked."""

_lock = threading.Lock()
_process_wide: Options | None = None
_open_scopes = 0
_scoped: ContextVar[Options | None] = ContextVar("sllm_transformers_options", default=None)


def checked(options: Options) -> Options:
    """The options, after a check of names and values.

    Raises:
        OptionError: unknown name, or a value the option cannot take.
    """
    if not options:
        return {}
    from dataclasses import fields

    from sllm.errors import OptionError
    from sllm.loader.base import LoadOptions

    known = [field.name for field in fields(LoadOptions)]
    for name in options:
        if name not in known:
            raise OptionError(f"unknown option {name!r}", hint=f"use one of {', '.join(known)}")
    LoadOptions(**options)
    return dict(options)


def load_options(options: Options) -> LoadOptions:
    """What the loader is told, where the caller leaves the method open.

    A process that starts has no memory that was touched before. Reading into fresh memory means
    that the kernel first zeroes every page of it, which costs more than the read; pages of a
    mapped file are filled by the read itself, and the next process finds them.
    """
    from sllm.loader.base import LoadOptions

    method = options.get("method", "auto")
    return LoadOptions(**{**options, "method": "map" if method == "auto" else method})


def set_process_wide(options: Options | None) -> None:
    """Switch on with `options`, or off with None, for every thread."""
    global _process_wide
    with _lock:
        _process_wide = options


@contextmanager
def scope(options: Options) -> Iterator[None]:
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


def active_options() -> Options | None:
    """The innermost options in force here; None when switched off."""
    scoped = _scoped.get()
    return _process_wide if scoped is None else scoped


def in_use() -> bool:
    """Whether any thread may still want loads taken over."""
    with _lock:
        return _process_wide is not None or _open_scopes > 0
