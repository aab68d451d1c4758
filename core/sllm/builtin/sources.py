"""The `file` source tier: a path on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sllm.errors import CheckpointNotFoundError, OptionError
from sllm.hookspecs import hookimpl
from sllm.interfaces import Source


class FileSource:
    """`/a/path`, `a/path` and `file:///a/path`."""

    name = "file"
    schemes: Sequence[str] = ("file",)

    def local_path(self, uri: str) -> Path:
        path = Path(self._path(uri)).expanduser()
        if not path.exists():
            raise CheckpointNotFoundError(
                "no such file or directory", path=path, hint="check the path to the model"
            )
        return path

    @staticmethod
    def _path(uri: str) -> str:
        if not uri.startswith("file://"):
            return uri
        parts = urlsplit(uri)
        if parts.netloc not in ("", "localhost"):
            raise OptionError(
                f"{uri!r} names the host {parts.netloc!r}",
                hint="a file:// URI has three slashes: file:///path/to/model",
            )
        return unquote(parts.path)


@hookimpl
def sllm_sources() -> Iterable[Source]:
    return [FileSource()]
