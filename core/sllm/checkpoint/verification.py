"""`verify`: is every byte still what was written?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sllm.checkpoint.base import Checkpoint, DataFile
from sllm.checkpoint.files import os_errors
from sllm.checkpoint.output import Progress
from sllm.checkpoint.reading import read_checkpoint
from sllm.errors import ChecksumError, CorruptCheckpointError


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was checked, all of it found right.

    Attributes:
        path: the model.
        prepared: whether a manifest came with it.
        files, tensors, views: how many.
        nbytes: bytes of the data files.
        chunks: checksums compared; 0 for an unprepared model, which has none.
        note: one sentence for people.
    """

    path: Path
    prepared: bool
    files: int
    tensors: int
    views: int
    nbytes: int
    chunks: int
    note: str

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {**asdict(self), "path": str(self.path)}


def verify(path: str | Path, *, progress: Progress | None = None) -> VerifyReport:
    """Check headers, sizes and offsets and, of a prepared model, every byte against its checksum.

    Args:
        path: model directory or one safetensors file.
        progress: called with (bytes checked, bytes in all) after each file.

    Raises:
        ChecksumError: bytes changed; names the file, the place and the tensors concerned.
        CheckpointError: as for `read_checkpoint`.
    """
    checkpoint = read_checkpoint(path)
    chunks = 0
    done = 0
    for file in checkpoint.files.values():
        if file.checksums is not None:
            _verify_file(file)
            chunks += len(file.checksums.crc32c)
        done += file.size
        if progress is not None:
            progress(done, checkpoint.nbytes)
    return _report(Path(path), checkpoint, chunks)


def _verify_file(file: DataFile) -> None:
    from sllm import _native

    assert file.checksums is not None
    with os_errors(file.path):
        actual = _native.crc32c_file(str(file.path), file.checksums.chunk_size)
    if len(actual) != len(file.checksums.crc32c):
        raise CorruptCheckpointError(
            "the file's size changed while it was checked",
            path=file.path,
            hint="verify again once nobody writes to it",
        )
    for index, (found, expected) in enumerate(zip(actual, file.checksums.crc32c, strict=True)):
        if found != expected:
            raise checksum_error(file, index, found)


def checksum_error(file: DataFile, chunk: int, found: int) -> ChecksumError:
    """Names the file, where the chunk starts and the tensors that lie in it."""
    assert file.checksums is not None
    begin = chunk * file.checksums.chunk_size
    end = min(begin + file.checksums.chunk_size, file.size)
    tensors = [tensor.name for tensor in file.tensors if tensor.offset < end and tensor.end > begin]
    inside = ", ".join(tensors[:5]) + (f" and {len(tensors) - 5} more" if len(tensors) > 5 else "")
    return ChecksumError(
        f"bytes {begin} to {end} have CRC32C {found:08x}, "
        f"the manifest says {file.checksums.crc32c[chunk]:08x}; "
        f"tensors there: {inside or 'none, the header'}",
        path=file.path,
        tensor=tensors[0] if tensors else None,
        offset=begin,
        hint="the file is damaged: copy it again, or convert the original model again",
    )


def _report(path: Path, checkpoint: Checkpoint, chunks: int) -> VerifyReport:
    note = (
        f"every byte agrees with its checksum ({chunks} chunks)"
        if checkpoint.prepared
        else "headers, sizes and offsets agree; an unprepared model has no checksums to compare, "
        "`sllm convert` adds them"
    )
    return VerifyReport(
        path=path,
        prepared=checkpoint.prepared,
        files=len(checkpoint.files),
        tensors=len(checkpoint.tensors),
        views=len(checkpoint.views),
        nbytes=checkpoint.nbytes,
        chunks=chunks,
        note=note,
    )
