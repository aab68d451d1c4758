"""What a checkpoint is, to everything that reads or writes one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

STORAGE_PREFIX = "sllm.storage."
"""Names of stored tensors that are no tensor of the model but the memory that some views share."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as it lies in a file.

    Attributes:
        name: the tensor's key.
        dtype: safetensors dtype name, e.g. ``"BF16"``.
        shape: dimensions; ``()`` for a 0-d tensor.
        file: file name relative to the checkpoint's directory.
        offset: absolute byte offset within that file (not within its data section).
        nbytes: length in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        """One past the last byte, within the file."""
        return self.offset + self.nbytes


@dataclass(frozen=True, slots=True)
class View:
    """A tensor that shares another's storage (tied weights, transposes, slices).

    Elements are torch's: of F4, which torch packs, pairs of one byte each.

    Attributes:
        base: name of the stored tensor whose bytes it looks at.
        dtype: safetensors dtype name; it may differ from the base's.
        shape: dimensions.
        stride: in elements of `dtype`.
        storage_offset: in elements of `dtype`, from the start of `base`.
    """

    base: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage_offset: int


@dataclass(frozen=True, slots=True)
class ChunkSums:
    """CRC32C (Castagnoli, RFC 3720) of each `chunk_size` bytes of a whole file, header included.

    Attributes:
        chunk_size: bytes a chunk; the last may be shorter.
        crc32c: one unsigned 32-bit value a chunk.
    """

    chunk_size: int
    crc32c: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DataFile:
    """One safetensors file.

    Attributes:
        name: relative to the checkpoint's directory.
        path: absolute path.
        size: bytes.
        data_offset: where the data section starts (8 + header length).
        tensors: what lies in it, in file order.
        metadata: the header's ``__metadata__``.
        checksums: from the manifest; None for unprepared files.
    """

    name: str
    path: Path
    size: int
    data_offset: int
    tensors: tuple[TensorInfo, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    checksums: ChunkSums | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model directory (or a single safetensors file), its header fully validated.

    Attributes:
        directory: where it lies.
        files: data files by name, in reading order.
        tensors: every stored tensor by name.
        views: names that share a stored tensor's bytes (prepared models only).
        prepared: whether a manifest (``sllm.json``) describes it.
    """

    directory: Path
    files: Mapping[str, DataFile]
    tensors: Mapping[str, TensorInfo]
    views: Mapping[str, View] = field(default_factory=dict)
    prepared: bool = False

    def moved_to(self, directory: Path) -> Checkpoint:
        """The same checkpoint after its directory was renamed."""
        files = {name: replace(file, path=directory / name) for name, file in self.files.items()}
        return replace(self, directory=directory, files=files)

    @property
    def nbytes(self) -> int:
        """Total size of the data files in bytes."""
        return sum(file.size for file in self.files.values())

    @property
    def names(self) -> tuple[str, ...]:
        """The model's tensors: the stored ones, then the views; not memory that only views use."""
        stored = (name for name in self.tensors if not name.startswith(STORAGE_PREFIX))
        return (*stored, *self.views) if self.views else tuple(self.tensors)
