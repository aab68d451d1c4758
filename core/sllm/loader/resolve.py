"""From what a person typed to a directory on this machine."""

from __future__ import annotations

from pathlib import Path

from sllm.errors import OptionError
from sllm.interfaces import Source


def scheme_of(uri: str) -> str:
    """The URI's scheme; a plain path is ``file``."""
    scheme, separator, _ = uri.partition("://")
    return scheme.lower() if separator else "file"


def find_source(uri: str) -> Source:
    """The source tier that serves the URI; the last registered wins.

    Raises:
        OptionError: no plugin serves its scheme; the message lists those that exist.
    """
    from sllm.plugins import each

    by_scheme = {scheme: source for source in each("sllm_sources") for scheme in source.schemes}
    scheme = scheme_of(uri)
    try:
        found: Source = by_scheme[scheme]
    except KeyError:
        raise OptionError(
            f"no source tier reads {scheme}:// (asked for {uri!r})",
            hint=f"known schemes: {', '.join(sorted(by_scheme))}; `sllm hooks` lists the plugins",
        ) from None
    return found


def resolve(model: str | Path) -> tuple[Path, str]:
    """Where the model lies on this machine, and the name of the source that supplied it."""
    uri = str(model)
    source = find_source(uri)
    return source.local_path(uri), source.name
