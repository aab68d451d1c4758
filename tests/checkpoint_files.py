"""Safetensors files built by hand, byte by byte, for the checkpoint tests."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file

from sllm.checkpoint import Checkpoint, save


def entry(dtype: str, shape: list[Any], begin: int, end: int) -> dict[str, Any]:
    """One header entry."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def safetensors_bytes(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A file from header (object, text or bytes) and data; `length` lies about the header's."""
    if not isinstance(header, str | bytes):
        header = json.dumps(header)
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def write(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """`safetensors_bytes` in a file."""
    path.write_bytes(safetensors_bytes(header, data, length))
    return path


def reference(raw: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What safetensors itself reads: (dtype, shape, bytes) by name. Raises SafetensorError."""
    return {
        name: (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
        for name, tensor in safetensors.deserialize(raw)
    }


def assert_agrees(checkpoint: Checkpoint) -> None:
    """Every stored tensor is what safetensors reads from the same files."""
    theirs = {}
    for file in checkpoint.files.values():
        theirs.update(reference(file.path.read_bytes()))
    assert tensor_bytes(checkpoint) == theirs


def tensor_bytes(checkpoint: Checkpoint) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """(dtype, shape, bytes) of every stored tensor by name."""
    raw = {name: file.path.read_bytes() for name, file in checkpoint.files.items()}
    return {
        name: (tensor.dtype, tensor.shape, raw[tensor.file][tensor.offset : tensor.end])
        for name, tensor in checkpoint.tensors.items()
    }


def names_in(directory: Path) -> set[str]:
    """Every file below a directory."""
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


def entries(directory: Path) -> set[str]:
    """Names in a directory, hidden ones too."""
    return {path.name for path in directory.iterdir()}


def layered_model(directory: Path) -> Path:
    """Twelve layers with even and odd sizes, so that alphabetical order is the wrong one."""
    directory.mkdir()
    tensors = {
        f"model.layers.{n}.{kind}": torch.full(shape, n, dtype=torch.bfloat16)
        for n in range(12)
        for kind, shape in (("mlp", (32, 8)), ("norm", (33,)), ("scale", ()))
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt", "who": "me"})
    (directory / "config.json").write_text('{"a": 1}')
    return directory


def sharing_model(directory: Path) -> Path:
    """A prepared model of three files and five tensors, among them a tie and a view."""
    weight = torch.arange(120, dtype=torch.int32).reshape(10, 12)
    state = {
        "embed": weight,
        "head": weight,
        "rows": weight[2:5],
        "norm": torch.ones(33, dtype=torch.bfloat16),
        "big": torch.arange(3000, dtype=torch.int16),
    }
    save(state, directory, config={"model_type": "x"}, max_shard_size=500)
    return directory
