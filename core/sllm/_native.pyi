"""The native loader (core/csrc). Links neither torch nor CUDA; releases the GIL while it works."""

from collections.abc import Sequence
from typing import Any

class Cancelled(Exception): ...

class ChecksumMismatch(Exception):
    """args: (path, chunk index, offset, expected, actual)"""

class Region:
    """Page-aligned host memory; exported by DLPack as a writable 1-D uint8 CPU array and by the
    buffer protocol. Freed (or given back to its pool) when the last export dies."""

    @property
    def nbytes(self) -> int: ...
    @property
    def address(self) -> int: ...
    @property
    def kind(self) -> str: ...  # "anonymous" | "map"
    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __len__(self) -> int: ...

class RegionPool:
    """Keeps freed anonymous regions, already touched, for the next allocation that fits."""

    def __init__(self, keep_bytes: int) -> None: ...
    def allocate(self, nbytes: int, *, huge_pages: bool = True, touch: bool = False) -> Region: ...
    def clear(self) -> None: ...
    @property
    def held_bytes(self) -> int: ...

class FileRequest:
    """One file of a load.

    extents: (file offset, length) byte ranges wanted, ascending, not overlapping; anything.
    The region spans the whole file: byte i of the file is byte i of the region (bytes outside the
    extents are undefined for anonymous regions).
    expected_size: the file must have just this size, else ShortRead/size error (OSError EIO text).
    chunk_size, crc32c: per-chunk checksums of the whole file; compared for chunks read in full.
    verify: "auto" compares while bytes are copied anyway, "always" also in a pass of its own over
    a mapping, "never" not at all.
    into: read into this region (>= the file's size rounded up to 4096) instead of allocating.
    """

    def __init__(
        self,
        path: str,
        expected_size: int,
        extents: Sequence[tuple[int, int]],
        *,
        method: str = "auto",
        chunk_size: int = 0,
        crc32c: Sequence[int] = (),
        verify: str = "auto",
        into: Region | None = None,
    ) -> None: ...

class FileStats:
    method: str
    reason: str
    resident: float  # fraction in the page cache before the read
    nbytes: int
    started: float  # seconds since the job's start
    finished: float
    allocate_seconds: float
    read_seconds: float  # time with at least one read (or population of a mapping) under way
    verify_seconds: float  # likewise; stages overlap, so they do not add up
    verified: bool  # every chunk that was read from at all was compared

class LoadJob:
    """Reads files in order on native threads, in file order within each file.

    Nothing happens before start(). At most `prefetch_files` files are in flight or finished but
    not yet released by release(); 0 = no limit. register_buffers: with io_uring, pin memory that
    is all touched already once instead of for every read (where the kernel and RLIMIT_MEMLOCK
    allow, else silently not); off by default because it measured no gain, see core/csrc/README.md.
    """

    def __init__(
        self,
        files: Sequence[FileRequest],
        *,
        threads: int = 0,
        queue_depth: int = 0,
        block_size: int = 0,
        huge_pages: bool = True,
        register_buffers: bool = False,
        prefetch_files: int = 0,
        pool: RegionPool | None = None,
    ) -> None: ...
    def start(self) -> None: ...
    def wait(self, timeout: float | None = None) -> bool:
        """True when all is read; False on timeout. Raises the job's error (OSError with filename,
        ChecksumMismatch, Cancelled, MemoryError). Wakes often enough to deliver Ctrl-C."""
    def wait_range(self, file: int, begin: int, end: int) -> None:
        """Blocks until bytes [begin, end) of that file are in its region (and verified, if asked).

        Raises ValueError for bytes that no extent covers (unless the file is mapped).
        """
    def region(self, file: int) -> Region:
        """The file's region, as soon as it is allocated (blocks until then)."""
    def release(self, file: int) -> None:
        """The caller holds what it needs of that file's region: lets the next file start."""
    def cancel(self) -> None:
        """At once; from any thread, any number of times. Destroying a job cancels and joins."""
    def progress(self) -> tuple[int, int]: ...
    def stats(self) -> list[FileStats]: ...

def residency(path: str) -> float:
    """Fraction of the file's pages in the page cache: cachestat(2), else mincore(2)."""

def evict(path: str) -> None:
    """Drop the file's clean pages from the page cache (posix_fadvise DONTNEED)."""

def probe(path: str) -> dict[str, Any]:
    """{"direct": bool, "direct_align": int, "uring": bool, "file_system": str, "reason": str}"""

def crc32c(data: Any, value: int = 0) -> int:
    """CRC32C of a C-contiguous buffer, continuing from `value`; in hardware where there is any."""

def crc32c_combine(first: int, second: int, second_length: int) -> int:
    """CRC32C of the concatenation."""

def crc32c_file(path: str, chunk_size: int, threads: int = 0) -> list[int]:
    """CRC32C of each chunk of a file (a file of 0 bytes has none)."""

def build_info() -> dict[str, Any]:
    """{"uring": bool (compiled in), "crc32c": "sse4.2"|"armv8"|"table", "version", "sanitizer"}"""
