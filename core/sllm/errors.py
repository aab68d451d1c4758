"""One exception tree. Every message says what was wrong, where, and what to do."""

from __future__ import annotations

from pathlib import Path


class SllmError(Exception):
    """Root of everything this project raises on purpose.

    The place is kept as attributes too, so that callers can act on it without
    parsing the message.

    Attributes:
        path: the file or directory concerned.
        tensor: the tensor's name.
        offset: byte offset within `path`.
        hint: what the reader can do about it.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | Path | None = None,
        tensor: str | None = None,
        offset: int | None = None,
        hint: str | None = None,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.tensor = tensor
        self.offset = offset
        self.hint = hint
        where = [
            f"{label} {value}"
            for label, value in (
                ("file", self.path),
                ("tensor", None if tensor is None else f"{tensor!r:.300}"),
                ("offset", offset),
            )
            if value is not None
        ]
        text = message
        if where:
            text += f" [{', '.join(where)}]"
        if hint:
            text += f" - {hint}"
        super().__init__(text)


class CheckpointError(SllmError):
    """The checkpoint cannot be used as it is."""


class CheckpointNotFoundError(CheckpointError):
    """Nothing loadable lies at the path."""


class CorruptCheckpointError(CheckpointError):
    """A header, size or offset contradicts the file."""


class ChecksumError(CorruptCheckpointError):
    """Bytes differ from the checksum recorded in the manifest."""


class UnsupportedFormatError(CheckpointError):
    """A format we do not read: pickle files, an unknown dtype, a newer manifest."""


class LoadError(SllmError):
    """Reading failed: I/O error, file changed underneath, no memory."""


class LoadCancelledError(LoadError):
    """The load was cancelled."""


class OptionError(SllmError):
    """An option does not exist or has a value it cannot take."""


class EngineError(SllmError):
    """An engine could not be started, died or broke its contract."""
