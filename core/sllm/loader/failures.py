"""What the native loader raises, told in the project's own errors."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sllm import _native
from sllm.checkpoint.base import DataFile
from sllm.errors import (
    ChecksumError,
    CorruptCheckpointError,
    LoadCancelledError,
    LoadError,
    SllmError,
)

_HINTS = {
    errno.EACCES: "check the file's permissions",
    errno.ENOENT: "the file vanished while it was being read; is somebody replacing the model?",
    errno.ESTALE: "the file changed while it was being read; load it again once it is complete",
    errno.EIO: "the disk failed or the file is shorter than it was; check the kernel log and "
    "`sllm verify`",
    errno.ENOMEM: "free memory, or load fewer models at once",
    errno.EINVAL: "leave the load method at its default, `auto`",
}


def _checksum_error(error: _native.ChecksumMismatch, files: Mapping[str, DataFile]) -> SllmError:
    path, chunk, offset, expected, actual = error.args
    file = files.get(path)
    tensors: list[str] = []
    if file is not None and file.checksums is not None:
        end = offset + file.checksums.chunk_size
        hit = [t for t in file.tensors if t.nbytes and t.offset < end and t.end > offset]
        # The largest first: of a chunk that many share, it is the likeliest to be damaged.
        hit.sort(key=lambda tensor: tensor.nbytes, reverse=True)
        tensors = [tensor.name for tensor in hit]
    return ChecksumError(
        f"chunk {chunk} has CRC32C {actual:#010x}, the manifest says {expected:#010x}",
        path=path,
        tensor=_few(tensors),
        offset=offset,
        hint="the file is damaged: convert the model again or restore it from its source",
    )


def _few(names: list[str]) -> str | None:
    """The first three, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more or None


@contextmanager
def translated(files: Mapping[str, DataFile]) -> Iterator[None]:
    """Turn native exceptions into `sllm.errors`; `files` maps paths to what lies there."""
    try:
        yield
    except _native.ChecksumMismatch as error:
        raise _checksum_error(error, files) from None
    except _native.Cancelled:
        raise LoadCancelledError("the load was cancelled") from None
    except MemoryError as error:
        raise LoadError(
            f"not enough memory: {error}", hint="free memory, or load fewer models at once"
        ) from None
    except OSError as error:
        kind = CorruptCheckpointError if error.errno == errno.ESTALE else LoadError
        raise kind(
            f"cannot read: {error.strerror or error}",
            path=error.filename,
            hint=_HINTS.get(error.errno or 0),
        ) from error
