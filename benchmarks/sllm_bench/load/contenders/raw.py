"""The raw limit: the same bytes into memory touched before, with nothing around it."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sllm_bench.load.contenders.base import Contender, FirstTouch, Mode, Variant
from sllm_bench.load.digest import entries
from sllm_bench.load.host import PAGE, Bytes, HostTensor, fault_in

MIB = 1 << 20
COLD = tuple((threads, block) for threads in (1, 2, 4) for block in (4, 16))
WARM_COPY = (1, 2, 4)
WARM_READ = ((1, 4), (2, 4), (4, 4))
COPY_BLOCK = 16 * MIB

Block = tuple[int, int, int]
"""(index of the file, offset within it, bytes)"""


class Raw(Contender):
    """Several plain ways; the best median of them is what loaders are held against.

    cold: threads with preadv and O_DIRECT. warm: memcpy out of a populated mapping, and threads
    with preadv through the page cache.
    """

    name = "raw"
    packages: ClassVar[Sequence[str]] = ("numpy",)
    modules: ClassVar[Sequence[str]] = ("numpy",)
    holds_memory = True

    def variants(self, mode: Mode) -> Sequence[Variant]:
        if mode == "cold":
            return [
                Variant(f"direct-{n}x{size}", f"raw O_DIRECT, {n} x {size} MiB", limit=True)
                for n, size in COLD
            ]
        cores = os.cpu_count() or 1
        copies = [
            Variant(f"copy-{n}x16", f"raw memcpy, {n} x 16 MiB", limit=True)
            for n in WARM_COPY
            if n <= cores
        ]
        reads = [
            Variant(f"pread-{n}x{size}", f"raw pread, {n} x {size} MiB", limit=True)
            for n, size in WARM_READ
            if n <= 2 * cores
        ]
        return copies + reads

    def prepare(self) -> None:
        files = self.setup.model.files
        self._sizes = [path.stat().st_size for path in files]
        starts = np.cumsum([0, *(-(-size // PAGE) * PAGE for size in self._sizes)])
        self._starts = [int(start) for start in starts[:-1]]
        total = int(starts[-1])
        self._memory = mmap.mmap(-1, max(total, PAGE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel without transparent huge pages
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.first_touch = FirstTouch(total, fault_in(self._memory))
        self._bytes: Bytes = np.frombuffer(self._memory, dtype=np.uint8)
        self._refused = False
        self._sources: list[Bytes] = []

    def before(self, variant: str) -> None:
        if not variant.startswith("copy"):
            return
        for path in self.setup.model.files:
            with path.open("rb") as file:
                flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
                mapping = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ)
            self._sources.append(np.frombuffer(mapping, dtype=np.uint8))

    def load(self, variant: str) -> Bytes:
        way, _, shape = variant.partition("-")
        threads, mebibytes = (int(part) for part in shape.split("x"))
        blocks = list(self._blocks(mebibytes * MIB))
        if way == "copy":
            _in_threads(threads, blocks, self._copy)
        else:
            with self._opened(direct=way == "direct") as descriptors:
                _in_threads(threads, blocks, lambda block: self._read(descriptors, block))
        return self._bytes

    def tensors(self, loaded: Bytes) -> Mapping[str, HostTensor]:
        found = {}
        for path, start in zip(self.setup.model.files, self._starts, strict=True):
            for entry in entries(path):
                data = loaded[start + entry.begin : start + entry.end]
                found[entry.name] = HostTensor(entry.dtype, entry.shape, data)
        return found

    def details(self) -> dict[str, Any]:
        return {"reason": "O_DIRECT refused, read through the page cache"} if self._refused else {}

    def release(self, loaded: Any) -> None:
        self._sources.clear()

    def _blocks(self, size: int) -> Iterator[Block]:
        for index, length in enumerate(self._sizes):
            for offset in range(0, length, size):
                yield index, offset, min(size, length - offset)

    @contextlib.contextmanager
    def _opened(self, *, direct: bool) -> Iterator[list[int]]:
        with contextlib.ExitStack() as stack:
            descriptors = []
            for path in self.setup.model.files:
                descriptors.append(self._open(path, direct=direct))
                stack.callback(os.close, descriptors[-1])
            yield descriptors

    def _open(self, path: Path, *, direct: bool) -> int:
        if direct:
            try:
                return os.open(path, os.O_RDONLY | os.O_DIRECT)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._refused = True
        return os.open(path, os.O_RDONLY)

    def _read(self, descriptors: Sequence[int], block: Block) -> None:
        index, offset, length = block
        target = memoryview(self._memory)[self._starts[index] + offset :]
        whole = -(-length // PAGE) * PAGE  # O_DIRECT wants whole pages, at the end of a file too
        done = 0
        while done < length:
            count = os.preadv(descriptors[index], [target[done:whole]], offset + done)
            if count == 0:
                raise OSError(errno.EIO, "file ended early", str(self.setup.model.files[index]))
            done += count

    def _copy(self, block: Block) -> None:
        index, offset, length = block
        start = self._starts[index] + offset
        np.copyto(self._bytes[start : start + length], self._sources[index][offset:][:length])


def _in_threads(count: int, blocks: Sequence[Block], work: Callable[[Block], None]) -> None:
    """Hand out blocks in order; the first error of any thread is raised here."""
    todo: queue.SimpleQueue[Block] = queue.SimpleQueue()
    for block in blocks:
        todo.put(block)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            while not errors:
                work(todo.get_nowait())
        except queue.Empty:
            pass
        except BaseException as error:  # handed to the caller below
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
