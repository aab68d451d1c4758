"""The files that everybody loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """One model on disk.

    Attributes:
        directory: where it lies.
        files: its safetensors files, in reading order.
        nbytes: their sizes in all.
        views: names of tensors that only a prepared model's manifest knows (ties and views).
    """

    directory: Path
    files: tuple[Path, ...]
    nbytes: int
    views: frozenset[str] = frozenset()

    @classmethod
    def open(cls, directory: Path) -> ModelFiles:
        """The model in `directory`, its headers checked.

        Raises:
            sllm.errors.CheckpointError: nothing loadable lies there.
        """
        from sllm.checkpoint import read_checkpoint

        checkpoint = read_checkpoint(directory)
        return cls(
            directory=checkpoint.directory,
            files=tuple(file.path for file in checkpoint.files.values()),
            nbytes=checkpoint.nbytes,
            views=frozenset(checkpoint.views),
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for the pipe to a worker."""
        return {
            "directory": str(self.directory),
            "files": [str(file) for file in self.files],
            "nbytes": self.nbytes,
            "views": sorted(self.views),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ModelFiles:
        """The inverse of `as_dict`."""
        return cls(
            directory=Path(value["directory"]),
            files=tuple(Path(file) for file in value["files"]),
            nbytes=value["nbytes"],
            views=frozenset(value["views"]),
        )
