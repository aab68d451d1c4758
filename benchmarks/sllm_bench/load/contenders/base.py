"""What a loader must offer to take part."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Literal

from sllm_bench.load.host import HostTensor
from sllm_bench.load.model import ModelFiles

Mode = Literal["cold", "warm"]
"""cold: nothing of the files in the page cache. warm: all of them."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way a contender can load: a row of the table.

    Attributes:
        key: identifies it within its contender.
        label: for people.
        limit: a bound to compare with, not a loader: the best of these is "the raw limit".
    """

    key: str
    label: str
    limit: bool = False


@dataclass(frozen=True, slots=True)
class Setup:
    """What a contender is told at its start.

    Attributes:
        model: what to load.
        scratch: a folder on the same file system, for contenders with a file format of their own.
        device: where the tensors shall end up, e.g. ``cpu``.
        methods: load methods to force, for our own loader.
    """

    model: ModelFiles
    scratch: Path
    device: str = "cpu"
    methods: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class FirstTouch:
    """What it cost to obtain the memory that is reused: bytes and seconds, before any timing."""

    nbytes: int
    seconds: float


class Contender(ABC):
    """A loader under test; lives in a process of its own for the whole run.

    Importing the module must be cheap: the loader itself is imported by `prepare`.

    Attributes:
        name: identifies it, e.g. for ``--contenders``.
        packages: distributions it needs, for the record.
        modules: what must be importable.
        holds_memory: keeps a buffer as large as the model throughout the run.
        setup: what it was told.
        first_touch: set by `prepare` where memory is kept for reuse.
    """

    name: ClassVar[str]
    packages: ClassVar[Sequence[str]] = ()
    modules: ClassVar[Sequence[str]] = ()
    holds_memory: ClassVar[bool] = False

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.first_touch: FirstTouch | None = None

    @classmethod
    def unavailable(cls, device: str) -> str | None:
        """None when it can take part, else the reason, for people. Must not import the loader."""
        missing = [name for name in cls.modules if importlib.util.find_spec(name) is None]
        if missing:
            return f"not installed: {', '.join(missing)}"
        if device != "cpu":
            return f"not measured on {device} yet"
        return None

    @classmethod
    def versions(cls) -> dict[str, str]:
        """Version of each distribution involved."""
        return {name: metadata.version(name) for name in cls.packages}

    @abstractmethod
    def variants(self, mode: Mode) -> Sequence[Variant]:
        """The rows it contributes."""

    @abstractmethod
    def prepare(self) -> None:
        """Import everything and touch reusable memory: what a long-lived process pays once."""

    def files(self) -> Sequence[Path]:
        """What it reads, and what must therefore be cold or warm."""
        return self.setup.model.files

    def before(self, variant: str) -> None:  # noqa: B027
        """Called before each load, not timed; files must not enter the page cache here."""

    @abstractmethod
    def load(self, variant: str) -> Any:
        """Load the model. This is what is timed."""

    @abstractmethod
    def tensors(self, loaded: Any) -> Mapping[str, HostTensor]:
        """The tensors of a result of `load`, without copying."""

    def details(self) -> dict[str, Any]:
        """What the loader says about its last load, for the record."""
        return {}

    def release(self, loaded: Any) -> None:  # noqa: B027
        """Free whatever dropping the last reference to `loaded` does not."""
