"""``sllm.json``: what makes a model directory a prepared one. The schema is in docs/format.md."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sllm.checkpoint.base import Checkpoint, ChunkSums, DataFile, TensorInfo, View
from sllm.checkpoint.files import read_json
from sllm.checkpoint.header import read_header
from sllm.checkpoint.locate import is_safe_name
from sllm.checkpoint.views import check_view
from sllm.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    SllmError,
    UnsupportedFormatError,
)

MANIFEST = "sllm.json"
FORMAT = "sllm-checkpoint"
VERSION = 1
DATA_ALIGNMENT = 4096
"""The data section of a prepared file starts at a multiple of this many bytes."""

_CHECKSUM = re.compile(rb'"checksum": "crc32:([0-9a-f]{8})"')
_ZEROS = b'"checksum": "crc32:00000000"'
_CONVERT_AGAIN = (
    "convert the model again, or delete sllm.json to read the weights as an ordinary model"
)


def encode(
    files: Iterable[DataFile],
    views: Mapping[str, View],
    source: Mapping[str, Any],
    tool: str,
) -> bytes:
    """The manifest of the files just written.

    Args:
        files: with their checksums.
        source: what the weights were made from, for people and for comparing digests.
        tool: name and version of the writer.
    """
    files = list(files)
    top: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "checksum": "crc32:00000000",
        "tool": tool,
        "target": "any",
        "source": source,
    }
    sections: dict[str, dict[str, Any]] = {
        "files": {file.name: _file_entry(file) for file in files},
        "tensors": {tensor.name: _tensor_entry(tensor) for f in files for tensor in f.tensors},
        "views": {name: _view_entry(view) for name, view in views.items()},
    }
    lines = [f"{_json(key)}: {_json(value)}" for key, value in top.items()]
    for key, entries in sections.items():
        rows = ",\n    ".join(f"{_json(name)}: {_json(entry)}" for name, entry in entries.items())
        lines.append(f"{_json(key)}: {{\n    {rows}\n  }}" if rows else f"{_json(key)}: {{}}")
    raw = ("{\n  " + ",\n  ".join(lines) + "\n}\n").encode("utf-8")
    return _CHECKSUM.sub(f'"checksum": "crc32:{zlib.crc32(raw):08x}"'.encode(), raw, count=1)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _file_entry(file: DataFile) -> dict[str, Any]:
    assert file.checksums is not None
    return {
        "size": file.size,
        "data_offset": file.data_offset,
        "chunk_size": file.checksums.chunk_size,
        "crc32c": list(file.checksums.crc32c),
    }


def _tensor_entry(tensor: TensorInfo) -> dict[str, Any]:
    return {
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "file": tensor.file,
        "offset": tensor.offset,
        "nbytes": tensor.nbytes,
    }


def _view_entry(view: View) -> dict[str, Any]:
    return {
        "base": view.base,
        "dtype": view.dtype,
        "shape": list(view.shape),
        "stride": list(view.stride),
        "storage_offset": view.storage_offset,
    }


def read_prepared(directory: Path) -> Checkpoint:
    """The checkpoint that a manifest describes, every statement checked against the files' headers.

    Raises:
        UnsupportedFormatError: a manifest newer than this version, or made for one engine.
        CorruptCheckpointError: the manifest is damaged or contradicts a file.
    """
    path = directory / MANIFEST
    document, raw = read_json(path, "manifest", _CONVERT_AGAIN)
    manifest = _check_identity(document, raw, path)
    files: dict[str, DataFile] = {}
    for name, entry in _section(manifest, "files", path).items():
        files[name] = _read_file(directory, name, entry, path)
    tensors: dict[str, TensorInfo] = {}
    for file in files.values():
        for tensor in file.tensors:
            if tensor.name in tensors:
                raise _corrupt("two files hold this tensor", path, tensor.name)
            tensors[tensor.name] = tensor
    _check_tensors(_section(manifest, "tensors", path), tensors, path)
    views = {
        name: _view(name, entry, tensors, path)
        for name, entry in _section(manifest, "views", path).items()
    }
    return Checkpoint(directory, files, tensors, views, prepared=True)


def read_source(directory: Path) -> Mapping[str, Any]:
    """The ``tool``, ``target`` and ``source`` statements of a manifest, for people."""
    document, raw = read_json(directory / MANIFEST, "manifest", _CONVERT_AGAIN)
    manifest = _check_identity(document, raw, directory / MANIFEST)
    return {key: manifest.get(key) for key in ("version", "tool", "target", "source")}


def _corrupt(what: str, path: Path, tensor: str | None = None) -> SllmError:
    return CorruptCheckpointError(what, path=path, tensor=tensor, hint=_CONVERT_AGAIN)


def _check_identity(document: object, raw: bytes, path: Path) -> dict[str, Any]:
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise _corrupt(f"not a manifest: its format is not {FORMAT!r}", path)
    version = document.get("version")
    if type(version) is not int or version < 1:
        raise _corrupt(f"version {version!r:.80} is not a whole number from 1", path)
    if version > VERSION:
        raise UnsupportedFormatError(
            f"format version {version}; this sllm reads up to {VERSION}",
            path=path,
            hint="upgrade sllm (pip install --upgrade sllm), or convert the model again with it",
        )
    found = _CHECKSUM.search(raw)
    if found is None or document.get("checksum") != f"crc32:{found[1].decode()}":
        raise _corrupt("no checksum of the manifest itself", path)
    actual = zlib.crc32(raw[: found.start()] + _ZEROS + raw[found.end() :])
    if int(found[1], 16) != actual:
        raise _corrupt(
            f"its own checksum is {found[1].decode()}, its bytes give {actual:08x}: "
            "it was edited or damaged",
            path,
        )
    if document.get("target") != "any":
        raise UnsupportedFormatError(
            f"made for target {document.get('target')!r:.200}, not for any engine",
            path=path,
            hint="upgrade sllm, or convert the original model again",
        )
    return document


def _section(manifest: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    section = manifest.get(key)
    if not isinstance(section, dict) or (key == "files" and not section):
        raise _corrupt(f"{key!r} is missing or not an object", path)
    return section


def _read_file(directory: Path, name: str, entry: Any, path: Path) -> DataFile:
    if not is_safe_name(name) or not name.endswith(".safetensors"):
        raise _corrupt(f"{name!r:.200} is not the name of a safetensors file inside", path)
    sums = _checksums(name, entry, path)
    try:
        file = read_header(directory / name, name)
    except CheckpointNotFoundError:
        raise CorruptCheckpointError(
            "the manifest names this file, but it is not there",
            path=directory / name,
            hint="the copy is incomplete: copy the whole directory again",
        ) from None
    for key, actual in (("size", file.size), ("data_offset", file.data_offset)):
        if entry.get(key) != actual:
            raise CorruptCheckpointError(
                f"the manifest says {key} {entry.get(key)!r:.80}, the file has {actual}",
                path=file.path,
                offset=0,
                hint=f"the weights changed after they were prepared: {_CONVERT_AGAIN}",
            )
    if file.data_offset % DATA_ALIGNMENT:
        raise _corrupt(
            f"data of {name!r} starts at {file.data_offset}, not at a multiple of {DATA_ALIGNMENT}",
            path,
        )
    return replace(file, checksums=sums)


def _checksums(name: str, entry: Any, path: Path) -> ChunkSums:
    if not isinstance(entry, dict):
        raise _corrupt(f"the entry of {name!r} is not an object", path)
    size, chunk_size, sums = entry.get("size"), entry.get("chunk_size"), entry.get("crc32c")
    if type(size) is not int or size < 8:
        raise _corrupt(f"size {size!r:.80} of {name!r} is not a file size", path)
    if type(chunk_size) is not int or not is_chunk_size(chunk_size):
        raise _corrupt(f"chunk_size {chunk_size!r:.80} of {name!r} is not possible", path)
    chunks = -(-size // chunk_size)
    if not isinstance(sums, list) or len(sums) != chunks:
        raise _corrupt(f"{name!r} needs {chunks} checksums", path)
    if not all(type(value) is int and 0 <= value < 1 << 32 for value in sums):
        raise _corrupt(f"a checksum of {name!r} is not an unsigned 32-bit number", path)
    return ChunkSums(chunk_size, tuple(sums))


def is_chunk_size(value: int) -> bool:
    """Chunks are whole pages, from 4 KiB to 1 GiB."""
    return DATA_ALIGNMENT <= value <= 1 << 30 and value % DATA_ALIGNMENT == 0


def _check_tensors(table: Mapping[str, Any], tensors: Mapping[str, TensorInfo], path: Path) -> None:
    for name, tensor in tensors.items():
        if table.get(name) != _tensor_entry(tensor):
            raise _corrupt(
                f"the manifest says {table.get(name)!r:.300}, "
                f"the header of {tensor.file!r} says {_tensor_entry(tensor)!r:.300}",
                path,
                name,
            )
    for name in table:
        if name not in tensors:
            raise _corrupt("no file holds this tensor of the manifest", path, name)


def _view(name: str, entry: Any, tensors: Mapping[str, TensorInfo], path: Path) -> View:
    if name in tensors or name == "__metadata__":
        raise _corrupt("a view has the name of a stored tensor", path, name)
    try:
        view = View(
            base=entry["base"],
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            stride=tuple(entry["stride"]),
            storage_offset=entry["storage_offset"],
        )
    except (KeyError, TypeError):
        raise _corrupt(
            "a view needs base, dtype, shape, stride and storage_offset", path, name
        ) from None
    base = tensors.get(view.base) if isinstance(view.base, str) else None
    if base is None:
        raise _corrupt(f"its base {view.base!r:.200} is not a stored tensor", path, name)
    if problem := check_view(view, base):
        raise _corrupt(f"not a view of {view.base!r:.200}: {problem}", path, name)
    return view
