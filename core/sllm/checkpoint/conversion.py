"""`convert`: any safetensors model becomes a prepared one, streamed through one chunk of memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import reduce
from pathlib import Path
from typing import Any

from sllm import _native
from sllm.checkpoint.base import Checkpoint, DataFile, TensorInfo
from sllm.checkpoint.companions import companions, copy_companions
from sllm.checkpoint.files import open_file, os_errors, read_exactly
from sllm.checkpoint.header import read_header
from sllm.checkpoint.layout import Item, engine_order, parse_size, plan, split
from sllm.checkpoint.manifest import read_prepared
from sllm.checkpoint.output import (
    CHUNK_SIZE,
    Progress,
    check_chunk_size,
    check_space,
    write_files,
    write_index,
    write_manifest,
)
from sllm.checkpoint.reading import read_checkpoint
from sllm.checkpoint.staging import staged
from sllm.checkpoint.verification import verify
from sllm.checkpoint.writer import ChunkWriter
from sllm.errors import ChecksumError, CorruptCheckpointError, OptionError


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    overwrite: bool = False,
    max_shard_size: int | str | None = None,
    chunk_size: int = CHUNK_SIZE,
    progress: Progress | None = None,
) -> Checkpoint:
    """Write a prepared copy of a model: aligned, checksummed, still valid safetensors.

    Configuration, tokenizer, adapters, code and sub-folders travel along. The copy appears under
    its name whole or not at all; what was there before survives any failure.

    Args:
        src: model directory or one safetensors file.
        dst: directory to create.
        overwrite: replace the model at `dst`, with every file of it.
        max_shard_size: bytes (or text such as ``5GB``) of tensors a file; by default as in the
            source.
        chunk_size: bytes a checksum covers; a multiple of 4096.
        progress: called with (bytes written, bytes in all).

    Returns:
        The prepared checkpoint, read back and checked.

    Raises:
        CheckpointError: the source cannot be used, or the destination not written.
        ChecksumError: the source is a prepared model and its bytes are damaged.
        OptionError: an impossible `max_shard_size` or `chunk_size`.
    """
    check_chunk_size(chunk_size)
    shard_size = None if max_shard_size is None else parse_size(max_shard_size)
    source = read_checkpoint(src)
    destination = _resolve(Path(dst))
    _check_apart(Path(src).resolve(), destination)
    for file in source.files.values():
        _check_apart(file.path.resolve(), destination)
    others = companions(source) if Path(src).is_dir() else []
    metadata = _metadata(source)
    plans = plan(_groups(source, shard_size), metadata)
    with staged(destination, overwrite=overwrite) as directory:
        check_space(directory, sum(file.size for file in plans))
        with _Source(source) as reader:
            files = write_files(
                directory,
                plans,
                reader.put,
                metadata=metadata,
                chunk_size=chunk_size,
                progress=progress,
            )
            origin = _origin(Path(src), source, reader.digests())
        write_index(directory, files)
        copy_companions(others, source.directory, directory)
        write_manifest(directory, files, source.views, origin)
        written = read_prepared(directory)  # before anything is replaced by it
    # Not read again from there: another run may have replaced it by now.
    return written.moved_to(destination)


def _resolve(path: Path) -> Path:
    with os_errors(path):
        return path.resolve()


def _check_apart(source: Path, destination: Path) -> None:
    """Neither may lie within the other: replacing one would take the other with it."""
    if source == destination or destination in source.parents or source in destination.parents:
        raise OptionError(
            f"source and destination overlap: {source} and {destination}",
            hint="write the prepared model to a directory of its own",
        )


def _metadata(source: Checkpoint) -> dict[str, str]:
    """The headers' metadata joined; the first file's word counts. Other tools want a format."""
    joined: dict[str, str] = {}
    for file in source.files.values():
        for key, value in file.metadata.items():
            joined.setdefault(key, value)
    joined.setdefault("format", "pt")
    return joined


def _groups(source: Checkpoint, shard_size: int | None) -> list[list[Item]]:
    files = [
        [Item(tensor.name, tensor.dtype, tensor.shape, tensor.nbytes) for tensor in ordered]
        for ordered in (
            sorted(file.tensors, key=lambda tensor: engine_order(tensor.name))
            for file in source.files.values()
        )
    ]
    if shard_size is None:
        return files
    return split([item for file in files for item in file], shard_size)


_OPEN_FILES = 64


class _Source:
    """Hands out the source's tensors and, on the way, takes the checksum of each of its files."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._stack = ExitStack()
        self._descriptors: dict[str, int] = {}
        self._stamps: dict[str, tuple[int, ...]] = {}
        self._sums: dict[str, int] = {}

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, file: DataFile) -> int:
        if file.name not in self._descriptors:
            if len(self._descriptors) >= _OPEN_FILES:
                self._stack.close()
                self._descriptors.clear()
            descriptor, _ = self._stack.enter_context(open_file(file.path))
            self._descriptors[file.name] = descriptor
            now = _stamp(descriptor)
            if self._stamps.setdefault(file.name, now) != now or not _same_header(file):
                raise _changed(file, file.data_offset)
        return self._descriptors[file.name]

    def put(self, target: TensorInfo, writer: ChunkWriter, advance: Callable[[int], None]) -> None:
        """Copy one tensor from its file into the writer."""
        tensor = self._checkpoint.tensors[target.name]
        file = self._checkpoint.files[tensor.file]
        descriptor = self._open(file)
        offset = tensor.offset
        checksum = 0

        def read(part: memoryview) -> None:
            nonlocal offset, checksum
            rest = part
            while rest:
                with os_errors(file.path):
                    count = os.preadv(descriptor, [rest], offset)
                if count == 0:
                    raise _changed(file, offset)
                offset += count
                rest = rest[count:]
            checksum = _native.crc32c(part, checksum)
            advance(len(part))

        writer.fill(tensor.nbytes, read)
        self._sums[tensor.name] = checksum

    def digests(self) -> dict[str, int]:
        """CRC32C of each whole source file, put together from its header's and its tensors'.

        Raises:
            ChecksumError: the source is prepared and its checksums say otherwise.
        """
        found = {}
        for file in self._checkpoint.files.values():
            descriptor = self._open(file)
            if _stamp(descriptor) != self._stamps[file.name]:
                raise _changed(file, file.data_offset)
            header = read_exactly(descriptor, 0, file.data_offset, file.path)
            whole = _native.crc32c(header)
            for tensor in file.tensors:
                whole = _native.crc32c_combine(whole, self._sums[tensor.name], tensor.nbytes)
            if file.checksums is not None and whole != _whole(file):
                verify(self._checkpoint.directory)  # names the chunk
                raise ChecksumError(
                    "the bytes read differ from the manifest's checksums, and no longer do now",
                    path=file.path,
                    hint="the disk or the memory of this machine is failing, or the file changed",
                )
            found[file.name] = whole
        return found


def _stamp(descriptor: int) -> tuple[int, ...]:
    """Differs once somebody has written to the file or put another in its place."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _same_header(file: DataFile) -> bool:
    fresh = read_header(file.path, file.name)
    return (fresh.size, fresh.tensors) == (file.size, file.tensors)


def _whole(file: DataFile) -> int:
    """CRC32C of a prepared file from those of its chunks."""
    assert file.checksums is not None
    size = file.checksums.chunk_size
    lengths = [min(size, file.size - start) for start in range(0, file.size, size)]
    pairs = zip(file.checksums.crc32c, lengths, strict=True)
    return reduce(lambda whole, pair: _native.crc32c_combine(whole, *pair), pairs, 0)


def _changed(file: DataFile, offset: int) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        "the file changed while it was read",
        path=file.path,
        offset=offset,
        hint="convert again once it is complete",
    )


def _origin(src: Path, source: Checkpoint, digests: Mapping[str, int]) -> dict[str, Any]:
    """Where the weights come from. The name alone: a full path tells about the machine."""
    return {
        "name": src.resolve().name,
        "files": {
            name: {"size": source.files[name].size, "crc32c": digest}
            for name, digest in digests.items()
        },
    }
