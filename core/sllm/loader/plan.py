"""Which bytes of which files a load needs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from sllm.checkpoint.base import Checkpoint, DataFile, TensorInfo, View
from sllm.errors import OptionError


@dataclass(frozen=True, slots=True)
class FilePlan:
    """The part of one file that a load reads.

    Attributes:
        file: the file.
        tensors: wanted tensors, in file order.
        extents: (offset, length) byte ranges, ascending; the whole file when all of it is wanted,
            so that every checksum can be compared.
    """

    file: DataFile
    tensors: tuple[TensorInfo, ...]
    extents: tuple[tuple[int, int], ...]

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return sum(length for _, length in self.extents)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a load reads.

    Attributes:
        checkpoint: what it reads from.
        files: those with a wanted tensor, in reading order.
        views: wanted names that share a stored tensor's bytes.
        hidden: stored tensors that are read for their views' sake only.
    """

    checkpoint: Checkpoint
    files: tuple[FilePlan, ...]
    views: dict[str, View]
    hidden: frozenset[str] = frozenset()

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return sum(file.nbytes for file in self.files)


def _touching(tensors: Iterable[TensorInfo]) -> tuple[tuple[int, int], ...]:
    """Byte ranges of the tensors, neighbours merged."""
    merged: list[tuple[int, int]] = []
    for info in tensors:
        if info.nbytes == 0:
            continue
        if merged and merged[-1][0] + merged[-1][1] == info.offset:
            merged[-1] = (merged[-1][0], merged[-1][1] + info.nbytes)
        else:
            merged.append((info.offset, info.nbytes))
    return tuple(merged)


def make_plan(checkpoint: Checkpoint, names: Collection[str] | None = None) -> Plan:
    """Choose files and byte ranges for `names` (None: everything).

    Raises:
        OptionError: a name the checkpoint does not have.
    """
    if names is None:
        whole = tuple(
            FilePlan(file, file.tensors, ((0, file.size),)) for file in checkpoint.files.values()
        )
        hidden = frozenset(checkpoint.tensors).difference(checkpoint.names)
        return Plan(checkpoint, whole, dict(checkpoint.views), hidden)
    wanted = set(names)
    if unknown := wanted.difference(checkpoint.tensors, checkpoint.views):
        raise OptionError(
            f"the checkpoint has no tensor {sorted(unknown)[0]!r} ({len(unknown)} unknown in all)",
            path=checkpoint.directory,
            hint="`sllm inspect --tensors DIR` lists the names",
        )
    views = {name: view for name, view in checkpoint.views.items() if name in wanted}
    stored = wanted.difference(views) | {view.base for view in views.values()}
    files = []
    for file in checkpoint.files.values():
        tensors = tuple(info for info in file.tensors if info.name in stored)
        if tensors:
            files.append(FilePlan(file, tensors, _touching(tensors)))
    return Plan(checkpoint, tuple(files), views, frozenset(stored - wanted))
