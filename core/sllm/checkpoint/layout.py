"""Where each tensor of a prepared model goes: shards, order, offsets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sllm.checkpoint.base import TensorInfo
from sllm.checkpoint.header import encode_header
from sllm.checkpoint.locate import SINGLE
from sllm.checkpoint.manifest import DATA_ALIGNMENT
from sllm.errors import OptionError

TENSOR_ALIGNMENT = 64
"""Bytes; tensors whose size is a multiple of it all start at a multiple of it."""

_NUMBERS = re.compile(r"(\d+)")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BINARY = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True, slots=True)
class Item:
    """A tensor to be written.

    Attributes:
        name, dtype, shape, nbytes: as in `TensorInfo`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class FilePlan:
    """One file to be written.

    Attributes:
        name: file name.
        header: its first bytes, up to the data section.
        tensors: with their absolute offsets, in file order.
    """

    name: str
    header: bytes
    tensors: tuple[TensorInfo, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.tensors[-1].end if self.tensors else len(self.header)


def plan(groups: Sequence[Sequence[Item]], metadata: Mapping[str, str]) -> list[FilePlan]:
    """Lay out one file a group.

    Args:
        groups: the tensors of each file, in the order the engine uses them.
        metadata: for every header.
    """
    count = len(groups)
    return [
        _plan_file(
            SINGLE if count == 1 else f"model-{number:05}-of-{count:05}.safetensors",
            group,
            metadata,
        )
        for number, group in enumerate(groups, start=1)
    ]


def _plan_file(name: str, group: Iterable[Item], metadata: Mapping[str, str]) -> FilePlan:
    ordered = sorted(group, key=lambda item: -_alignment(item.nbytes))
    header = encode_header(
        [(item.name, item.dtype, item.shape, item.nbytes) for item in ordered],
        metadata,
        DATA_ALIGNMENT,
    )
    tensors = []
    offset = len(header)
    for item in ordered:
        tensors.append(TensorInfo(item.name, item.dtype, item.shape, name, offset, item.nbytes))
        offset += item.nbytes
    return FilePlan(name, header, tuple(tensors))


def _alignment(nbytes: int) -> int:
    """Largest power of two up to 64 that divides the size.

    The format allows no holes, so a tensor is followed at once by the next. Sorted by this,
    descending, each tensor starts at a multiple of its own value, which its element size divides.
    """
    return TENSOR_ALIGNMENT if nbytes % TENSOR_ALIGNMENT == 0 else nbytes & -nbytes


def engine_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that counts: layer 2 comes before layer 10."""
    return tuple(
        (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in _NUMBERS.split(name)
    )


def split(items: Iterable[Item], max_shard_size: int) -> list[list[Item]]:
    """Fill shards of at most `max_shard_size` bytes of tensors; a larger tensor has its own."""
    groups: list[list[Item]] = [[]]
    filled = 0
    for item in items:
        if groups[-1] and filled + item.nbytes > max_shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(item)
        filled += item.nbytes
    return groups


def parse_size(value: int | str) -> int:
    """Bytes from a number or a text such as ``5GB`` or ``512MiB``.

    Raises:
        OptionError: not a size.
    """
    match = re.fullmatch(
        r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?i?B)?\s*", str(value), re.IGNORECASE
    )
    size = 0
    if match is not None and not isinstance(value, bool):
        unit = (match[2] or "").upper()
        size = int(float(match[1]) * {**_UNITS, **_BINARY, "B": 1}.get(unit, 0))
    if size <= 0:
        raise OptionError(
            f"max_shard_size {value!r} is not a size", hint="give bytes, or a text such as 5GB"
        )
    return size
