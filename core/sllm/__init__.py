"""sllm: large language models that start as fast as the hardware can move their bytes.

The names below are the public face; everything is imported on first use, because
`import sllm` lies on every start-up path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sllm._lazy import lazy_names

if TYPE_CHECKING:
    from sllm.checkpoint import convert, inspect, read_checkpoint, save, verify
    from sllm.errors import SllmError
    from sllm.hookspecs import hookimpl
    from sllm.loader import LoadOptions, load, open, prefetch, stream

__version__ = "0.1.0"

_HOME = {
    "LoadOptions": "sllm.loader",
    "SllmError": "sllm.errors",
    "convert": "sllm.checkpoint",
    "hookimpl": "sllm.hookspecs",
    "inspect": "sllm.checkpoint",
    "load": "sllm.loader",
    "open": "sllm.loader",
    "prefetch": "sllm.loader",
    "read_checkpoint": "sllm.checkpoint",
    "save": "sllm.checkpoint",
    "stream": "sllm.loader",
    "verify": "sllm.checkpoint",
}

__all__ = [
    "LoadOptions",
    "SllmError",
    "__version__",
    "convert",
    "hookimpl",
    "inspect",
    "load",
    "open",
    "prefetch",
    "read_checkpoint",
    "save",
    "stream",
    "verify",
]


__getattr__ = lazy_names(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
