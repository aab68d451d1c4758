"""The plugin manager: built-ins first, then what is installed in the entry-point group `sllm`."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from importlib import import_module, metadata
from typing import Any

import pluggy

from sllm import hookspecs
from sllm.errors import OptionError

logger = logging.getLogger(__name__)

GROUP = "sllm"
BUILT_IN = (
    "sllm.builtin.sources",
    "sllm.builtin.devices",
    "sllm.builtin.estimators",
    "sllm.builtin.observers",
    "sllm.builtin.commands",
)


@functools.cache
def manager() -> pluggy.PluginManager:
    """The process-wide plugin manager, every plugin registered.

    A third-party plugin that fails to import is logged and left out: it must not
    keep a model from loading.
    """
    plugins = pluggy.PluginManager("sllm")
    plugins.add_hookspecs(hookspecs)
    for name in BUILT_IN:
        plugins.register(import_module(name), name)
    for entry in metadata.entry_points(group=GROUP):
        try:
            plugins.register(entry.load(), entry.name)
        except Exception:
            logger.exception(
                "plugin %r (%s) could not be loaded; going on without it", entry.name, entry.value
            )
    plugins.check_pending()
    return plugins


def each(hook: str) -> Iterator[Any]:
    """Everything that all plugins contribute to a listing hook, built-ins first."""
    results: list[list[Any]] = getattr(manager().hook, hook)()
    for contributed in reversed(results):
        yield from contributed


def named(hook: str, name: str) -> Any:
    """The one contribution called `name`; the last registered wins and can replace a built-in.

    Raises:
        OptionError: there is none; the message lists those there are.
    """
    found = {item.name: item for item in each(hook)}
    try:
        return found[name]
    except KeyError:
        raise OptionError(
            f"no {hook.removeprefix('sllm_').replace('_', ' ')} called {name!r}",
            hint=f"available: {', '.join(sorted(found)) or 'none'}",
        ) from None
