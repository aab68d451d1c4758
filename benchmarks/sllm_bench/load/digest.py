"""What the files hold, found without any of the loaders that are being compared."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sllm_bench.load.host import HostTensor
from sllm_bench.load.model import ModelFiles

Digest = dict[str, list[Any]]
"""Name to [dtype, shape, CRC32C of the bytes]; plain types, so that it can cross a pipe."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor in a file's header: absolute byte range [begin, end)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def entries(path: Path) -> Iterator[Entry]:
    """The tensors of one safetensors file: 8 bytes header length, JSON, data."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    for name, info in header.items():
        begin, end = info["data_offsets"]
        yield Entry(name, info["dtype"], tuple(info["shape"]), 8 + length + begin, 8 + length + end)


def of_tensors(tensors: Mapping[str, HostTensor]) -> Digest:
    """Digest of loaded tensors."""
    from sllm import _native

    return {
        name: [tensor.dtype, list(tensor.shape), _native.crc32c(tensor.data)]
        for name, tensor in tensors.items()
    }


def of_files(model: ModelFiles) -> Digest:
    """Digest of what lies on disk, by buffered reads of one tensor after the other."""
    found: Digest = {}
    for path in model.files:
        with path.open("rb") as file:
            for entry in entries(path):
                file.seek(entry.begin)
                data = np.frombuffer(file.read(entry.end - entry.begin), dtype=np.uint8)
                found |= of_tensors({entry.name: HostTensor(entry.dtype, entry.shape, data)})
    return found


def difference(expected: Digest, actual: Digest, views: frozenset[str]) -> str | None:
    """None when all is right, else what is wrong with it, naming the first tensor."""
    for name, (dtype, shape, checksum) in expected.items():
        if name not in actual:
            return f"tensor {name!r} is missing"
        got_dtype, got_shape, got_checksum = actual[name]
        if got_dtype != dtype or got_shape != shape:
            return f"tensor {name!r} is {got_dtype} {got_shape}, the file has {dtype} {shape}"
        if got_checksum != checksum:
            return f"tensor {name!r} has other bytes than the file"
    extra = sorted(set(actual) - set(expected) - views)
    return f"tensor {extra[0]!r} is in no file" if extra else None
