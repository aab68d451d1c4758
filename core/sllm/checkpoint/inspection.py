"""`inspect`: everything there is to know about a checkpoint without reading its tensors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from sllm.checkpoint.base import Checkpoint, DataFile
from sllm.checkpoint.layout import TENSOR_ALIGNMENT
from sllm.checkpoint.manifest import DATA_ALIGNMENT, read_source
from sllm.checkpoint.reading import read_checkpoint


def inspect(path: str | Path) -> dict[str, Any]:
    """Describe a checkpoint in plain types, fit for JSON.

    Args:
        path: model directory or one safetensors file.

    Returns:
        ``path``, ``prepared``, ``nbytes``; ``manifest`` (tool, target, source) of a prepared
        model; ``dtypes`` (tensors and bytes of each); ``alignment``; ``files`` (each with how it
        would be read now and why); ``tensors``; ``views``.

    Raises:
        CheckpointError: as for `read_checkpoint`.
    """
    checkpoint = read_checkpoint(path)
    return {
        "path": str(path),
        "prepared": checkpoint.prepared,
        "nbytes": checkpoint.nbytes,
        "manifest": dict(read_source(checkpoint.directory)) if checkpoint.prepared else None,
        "dtypes": _dtypes(checkpoint),
        "alignment": _alignment(checkpoint),
        "files": [_file(file) for file in checkpoint.files.values()],
        "tensors": {
            tensor.name: {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "file": tensor.file,
                "offset": tensor.offset,
                "nbytes": tensor.nbytes,
            }
            for tensor in checkpoint.tensors.values()
        },
        "views": {
            name: {
                "base": view.base,
                "dtype": view.dtype,
                "shape": list(view.shape),
                "stride": list(view.stride),
                "storage_offset": view.storage_offset,
            }
            for name, view in checkpoint.views.items()
        },
    }


def _dtypes(checkpoint: Checkpoint) -> dict[str, dict[str, int]]:
    tensors: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        tensors[tensor.dtype] += 1
        nbytes[tensor.dtype] += tensor.nbytes
    return {
        dtype: {"tensors": tensors[dtype], "nbytes": total} for dtype, total in nbytes.most_common()
    }


def _alignment(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "data_at_4096": all(f.data_offset % DATA_ALIGNMENT == 0 for f in checkpoint.files.values()),
        "tensors_at_64": sum(
            tensor.offset % TENSOR_ALIGNMENT == 0 for tensor in checkpoint.tensors.values()
        ),
        "tensors": len(checkpoint.tensors),
    }


def _file(file: DataFile) -> dict[str, Any]:
    return {
        "name": file.name,
        "size": file.size,
        "data_offset": file.data_offset,
        "tensors": len(file.tensors),
        "metadata": dict(file.metadata),
        "chunk_size": None if file.checksums is None else file.checksums.chunk_size,
        "chunks": None if file.checksums is None else len(file.checksums.crc32c),
        "reading": _reading(file),
    }


def _reading(file: DataFile) -> dict[str, Any]:
    """What the loader would find if it read the file now."""
    try:
        from sllm import _native
    except ImportError as error:
        return {"method": None, "reason": f"the native loader is missing: {error}"}
    try:
        resident = _native.residency(str(file.path))
        probe = _native.probe(str(file.path))
    except OSError as error:
        return {"method": None, "reason": str(error)}
    return {"resident": resident, **probe, "method": _method(resident, probe)}


_MAP_RESIDENT = 0.5  # kMapResident of core/csrc/method.cpp; a test compares the two


def _method(resident: float, probe: dict[str, Any]) -> str:
    if resident >= _MAP_RESIDENT:
        return "map"
    if not probe["direct"]:
        return "buffered"
    return "uring" if probe["uring"] else "direct"
