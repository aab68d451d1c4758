"""Writing one prepared file: sequential, in chunks, with the checksum of each."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from sllm import _native
from sllm.checkpoint.base import ChunkSums


class ChunkWriter:
    """Collects bytes into one chunk's buffer, then writes it and notes its CRC32C.

    Memory is one chunk. Bytes go straight from their source into that buffer: `fill` hands out
    the free part of it.
    """

    def __init__(self, path: Path, chunk_size: int) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._buffer = memoryview(bytearray(chunk_size))
        self._filled = 0
        self._chunk_size = chunk_size
        self._sums: list[int] = []

    def fill(self, length: int, source: Callable[[memoryview], None]) -> None:
        """Take `length` bytes from `source`, called with each stretch of memory to fill."""
        while length:
            part = self._buffer[self._filled : self._filled + length]
            source(part)
            self._filled += len(part)
            length -= len(part)
            if self._filled == self._chunk_size:
                self._flush()

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes that are in memory already."""
        rest = memoryview(data)

        def copy(part: memoryview) -> None:
            nonlocal rest
            part[:] = rest[: len(part)]
            rest = rest[len(part) :]

        self.fill(len(rest), copy)

    def finish(self) -> ChunkSums:
        """Write what is left and sync the file."""
        if self._filled:
            self._flush()
        os.fsync(self._descriptor)
        return ChunkSums(self._chunk_size, tuple(self._sums))

    def _flush(self) -> None:
        rest = self._buffer[: self._filled]
        self._sums.append(_native.crc32c(rest))
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self._filled = 0

    def __enter__(self) -> ChunkWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)
