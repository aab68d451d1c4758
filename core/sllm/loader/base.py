"""What a load takes and what it reports. Import-light: no torch, no native code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from sllm.errors import OptionError

Method = Literal["auto", "map", "uring", "direct", "buffered"]
"""How bytes leave a file.

auto      map when the page cache already holds the file, else uring, direct or buffered
map       private copy-on-write mapping of the page cache, populated by threads: no copy
uring     io_uring with O_DIRECT
direct    threads with pread and O_DIRECT
buffered  threads with pread through the page cache
"""

Verify = Literal["auto", "always", "never"]
"""When chunk checksums are compared; `auto`: while bytes are copied, never in an extra pass."""

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) now and then, from the thread that waits for the load."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Every knob of a load, with defaults that are right for most people.

    Attributes:
        method: see `Method`.
        verify: see `Verify`.
        threads: reading threads per file (pread methods, and populating a mapping); 0 = choose.
        queue_depth: blocks in flight with io_uring; 0 = choose.
        block_size: bytes a read, a multiple of 4096; 0 = choose.
        huge_pages: ask for huge pages for memory that is read into.
    """

    method: Method = "auto"
    verify: Verify = "auto"
    threads: int = 0
    queue_depth: int = 0
    block_size: int = 0
    huge_pages: bool = True

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise OptionError(
                f"unknown load method {self.method!r}", hint=f"use one of {get_args(Method)}"
            )
        if self.verify not in get_args(Verify):
            raise OptionError(
                f"unknown verify mode {self.verify!r}", hint=f"use one of {get_args(Verify)}"
            )
        for name in ("threads", "queue_depth", "block_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise OptionError(
                    f"{name} must be a whole number >= 0, not {value!r}", hint="0 chooses for you"
                )
        if self.block_size % 4096:
            raise OptionError(
                f"block_size {self.block_size} is not a multiple of 4096",
                hint="direct I/O needs whole pages",
            )


@dataclass(slots=True)
class Stage:
    """One step of the pipeline of one load.

    Attributes:
        name: ``allocate`` (memory obtained and touched), ``read`` (disk or page cache to memory),
            ``verify`` (checksums), ``place`` (host memory to device).
        nbytes: bytes that went through.
        seconds: time during which the stage was busy; stages overlap, so they do not add up.
    """

    name: str
    nbytes: int
    seconds: float

    @property
    def bandwidth(self) -> float:
        """Bytes per second; 0 when nothing was measured."""
        return self.nbytes / self.seconds if self.seconds > 0 else 0.0


@dataclass(slots=True)
class FileRecord:
    """How one file was read.

    Attributes:
        name: file name within the checkpoint.
        nbytes: bytes read from it.
        method: the method used, after `auto` was resolved.
        reason: why that method was used, for people.
        tier: ``page-cache`` or ``disk``.
        resident: fraction of the file in the page cache before the read.
        seconds: from its first read to its last.
        verified: whether checksums were compared.
    """

    name: str
    nbytes: int
    method: str
    reason: str
    tier: str
    resident: float
    seconds: float
    verified: bool


@dataclass(slots=True)
class LoadRecord:
    """What a load did: the input of observers and estimators.

    Attributes:
        model: the path or URI as the caller gave it.
        device: where the tensors ended up.
        nbytes: bytes asked for.
        seconds: wall time from request to last byte.
        files, stages: the details.
        source: the source tier that supplied the model, e.g. ``file``.
        error: the message when the load failed or was cancelled.
    """

    model: str
    device: str
    nbytes: int = 0
    seconds: float = 0.0
    files: list[FileRecord] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    source: str = "file"
    error: str | None = None

    @property
    def bandwidth(self) -> float:
        """Bytes per second over the whole load."""
        return self.nbytes / self.seconds if self.seconds > 0 else 0.0

    @property
    def tier(self) -> str:
        """The slowest tier that was read: ``disk`` if any file came from disk."""
        tiers = {file.tier for file in self.files}
        return "disk" if "disk" in tiers else "page-cache"

    @property
    def bottleneck(self) -> str | None:
        """Name of the stage that was busy longest."""
        busiest = max(self.stages, key=lambda stage: stage.seconds, default=None)
        return None if busiest is None else busiest.name

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {
            **asdict(self),
            "tier": self.tier,
            "bandwidth": self.bandwidth,
            "bottleneck": self.bottleneck,
        }
