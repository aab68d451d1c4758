"""Opening and listing files so that every failure names the file and says what to do."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sllm.checkpoint.strict_json import StrictJSONError, parse
from sllm.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
)

MAX_JSON_BYTES = 1 << 30
"""Longest index or manifest that is read: far above any real one, and a bound on memory."""


@contextmanager
def open_file(path: Path) -> Iterator[tuple[int, int]]:
    """A descriptor for reading a regular file, and its size in bytes. Symbolic links are followed.

    Raises:
        CheckpointNotFoundError: nothing is there.
        CheckpointError: a directory, a pipe, no permission, ...
    """
    with os_errors(path):
        # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise CheckpointError(
                f"{kind} where a file was expected", path=path, hint="give the weights file itself"
            )
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors, and paths it cannot even be asked about, into ours."""
    try:
        yield
    except FileNotFoundError:
        dangling = path.is_symlink()
        raise CheckpointNotFoundError(
            "a symbolic link that leads nowhere" if dangling else "no such file or directory",
            path=path,
            hint="download the model again" if dangling else "check the path",
        ) from None
    except PermissionError:
        raise CheckpointError(
            "no permission to read this", path=path, hint=f"make it readable for user {os.getuid()}"
        ) from None
    except NotADirectoryError:
        raise CheckpointNotFoundError(
            "a part of the path is a file, not a directory", path=path, hint="check the path"
        ) from None
    except IsADirectoryError:
        raise CheckpointError("a directory where a file was expected", path=path) from None
    except OSError as error:
        hint = {
            errno.ELOOP: "its symbolic links lead in a circle",
            errno.ENAMETOOLONG: "the name is too long for the file system",
            errno.EMFILE: "raise the limit on open files (ulimit -n)",
            errno.ESTALE: "the network file system changed underneath; try again",
        }.get(error.errno or 0)
        raise CheckpointError(
            f"cannot be read: {os.strerror(error.errno or 0)}", path=path, hint=hint
        ) from error
    except (ValueError, UnicodeError) as error:  # a NUL or a lone surrogate in the name
        raise CheckpointError(f"not a possible path: {error}") from None


def read_exactly(descriptor: int, offset: int, length: int, path: Path) -> bytes:
    """`length` bytes from `offset`.

    Raises:
        CorruptCheckpointError: the file ends before.
    """
    parts = []
    with os_errors(path):
        while length:
            part = os.pread(descriptor, min(length, 1 << 30), offset)
            if not part:
                raise CorruptCheckpointError(
                    "the file ends too early; it shrank while it was read",
                    path=path,
                    offset=offset,
                )
            parts.append(part)
            offset += len(part)
            length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_json(path: Path, what: str, hint: str) -> tuple[object, bytes]:
    """A JSON file beside the weights: the document and its bytes.

    Args:
        what: how to call it in messages, e.g. ``"index"``.
        hint: what to do when it is broken.

    Raises:
        CorruptCheckpointError: not valid JSON, or beyond any sensible size.
    """
    with open_file(path) as (descriptor, size):
        if size > MAX_JSON_BYTES:
            raise CorruptCheckpointError(
                f"{what} of {size} bytes is longer than {MAX_JSON_BYTES}", path=path, hint=hint
            )
        raw = read_exactly(descriptor, 0, size, path)
    try:
        return parse(raw, numbers="any"), raw
    except StrictJSONError as error:
        raise CorruptCheckpointError(
            f"{what} is not valid JSON: {error}", path=path, offset=error.offset, hint=hint
        ) from None


def list_directory(directory: Path) -> dict[str, bool]:
    """The names in a directory, each with whether it is (a link to) a regular file."""
    found = {}
    with os_errors(directory), os.scandir(directory) as entries:
        for entry in entries:
            try:
                found[entry.name] = entry.is_file()
            except OSError:  # a link in a circle: not a file, but somebody may ask for it
                found[entry.name] = False
    return dict(sorted(found.items()))
