"""The header of a safetensors file: read with every check, and written.

Source: the format's description and the reader in safetensors 0.8 (safetensors/src/tensor.rs).
Nothing is accepted here that safetensors itself refuses; a test compares the two.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any, NoReturn

from sllm.checkpoint.base import DataFile, TensorInfo
from sllm.checkpoint.dtypes import BITS
from sllm.checkpoint.files import open_file, read_exactly
from sllm.checkpoint.strict_json import StrictJSONError, parse
from sllm.errors import CorruptCheckpointError, UnsupportedFormatError

MAX_HEADER = 100_000_000
"""Longest header in bytes; the limit of safetensors itself."""

MAX_DIMENSIONS = 64
"""Of one tensor; NumPy's limit, and far above any model's."""

_LENGTH = struct.Struct("<Q")
_LARGEST = (1 << 63) - 1
_COPY_AGAIN = "download or copy the file again"
_WRITER_AT_FAULT = "the program that wrote this file is at fault; write it again with safetensors"
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive, as torch.save writes",
    b"\x80\x02": "a pickle",
    b"\x80\x04": "a pickle",
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file",
}


def read_header(path: Path, name: str | None = None) -> DataFile:
    """Read and check the header of one safetensors file.

    Args:
        path: the file.
        name: what it is called within its checkpoint; its own name by default.

    Returns:
        The file with its tensors in the order of their bytes.

    Raises:
        CorruptCheckpointError: the header contradicts the format or the file's size.
        UnsupportedFormatError: another format, or a dtype safetensors does not have.
    """
    with open_file(path) as (descriptor, size):
        if size < _LENGTH.size:
            raise CorruptCheckpointError(
                "the file is empty" if size == 0 else f"{size} bytes are too few for a header",
                path=path,
                offset=0,
                hint=_COPY_AGAIN,
            )
        start = read_exactly(descriptor, 0, _LENGTH.size, path)
        (length,) = _LENGTH.unpack(start)
        _check_length(start, length, size, path)
        raw = read_exactly(descriptor, _LENGTH.size, length, path)
    name = path.name if name is None else name
    table, metadata = _parse(raw, path)
    data_offset = _LENGTH.size + length
    tensors = _tensors(table, name, path, data_offset, size)
    return DataFile(name, path, size, data_offset, tensors, metadata)


def _check_length(start: bytes, length: int, size: int, path: Path) -> None:
    if length <= MAX_HEADER and _LENGTH.size + length <= size:
        return
    for magic, what in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise UnsupportedFormatError(
                f"this is {what}, not safetensors",
                path=path,
                hint="save the model with safetensors; pickles are never opened here",
            )
    if length > MAX_HEADER:
        raise CorruptCheckpointError(
            f"a header of {length} bytes is longer than the {MAX_HEADER} that safetensors allows",
            path=path,
            offset=0,
            hint="not a safetensors file, or its first bytes are damaged",
        )
    raise CorruptCheckpointError(
        f"the header needs {length} bytes, but the file has {size - _LENGTH.size} after its length",
        path=path,
        offset=0,
        hint=f"the file is truncated: {_COPY_AGAIN}",
    )


def _parse(raw: bytes, path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    if raw[:1] != b"{":
        raise CorruptCheckpointError(
            "the header does not begin with '{'",
            path=path,
            offset=_LENGTH.size,
            hint="not a safetensors file",
        )
    try:
        table = parse(raw)
    except StrictJSONError as error:
        raise CorruptCheckpointError(
            f"the header is not valid JSON: {error}",
            path=path,
            offset=_LENGTH.size + (error.offset or 0),
            hint=_COPY_AGAIN,
        ) from None
    metadata = table.pop("__metadata__", None)
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CorruptCheckpointError(
            "__metadata__ must map strings to strings",
            path=path,
            offset=_LENGTH.size,
            hint=_WRITER_AT_FAULT,
        )
    return table, metadata


def _tensors(
    table: Mapping[str, Any], file: str, path: Path, data_offset: int, size: int
) -> tuple[TensorInfo, ...]:
    """Check every entry by itself, then that together they cover the data section exactly."""
    entries = [(*_entry(name, entry, path), name) for name, entry in table.items()]
    entries.sort(key=itemgetter(0, 1))
    tensors = []
    reached = 0
    previous = ""
    for begin, end, dtype, shape, name in entries:
        if begin != reached:
            _bad_neighbours(previous, name, reached, begin, data_offset, path)
        tensors.append(TensorInfo(name, dtype, shape, file, data_offset + begin, end - begin))
        reached = end
        previous = name
    if data_offset + reached != size:
        _bad_end(tensors, data_offset + reached, size, path)
    return tuple(tensors)


def _entry(name: str, entry: Any, path: Path) -> tuple[int, int, str, tuple[int, ...]]:
    """(begin, end, dtype, shape) of one header entry; offsets count from the data section."""
    try:
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError):
        _broken(name, path, "its entry needs dtype, shape and data_offsets")
    if len(entry) > 3:
        _check_unknown_fields(name, entry, path)
    bits = BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise UnsupportedFormatError(
            f"unknown dtype {dtype!r:.80}",
            path=path,
            tensor=name,
            hint=f"safetensors has {', '.join(BITS)}",
        )
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        _broken(name, path, "shape and data_offsets must be lists, data_offsets of two")
    begin, end = offsets
    # `type(...) is int`: JSON's true and false are no numbers.
    if type(begin) is not int or type(end) is not int or not begin <= end <= _LARGEST:
        _broken(name, path, f"data_offsets {offsets!r:.80} are not a range")
    if len(shape) > MAX_DIMENSIONS:
        _broken(name, path, f"{len(shape)} dimensions are more than {MAX_DIMENSIONS}")
    total = bits
    zero = False
    for dimension in shape:
        if type(dimension) is not int or dimension > _LARGEST:
            _broken(name, path, f"shape {shape!r:.80} is not a list of dimensions")
        if dimension:
            total *= dimension
            if total > _LARGEST:
                _broken(name, path, f"shape {shape!r:.80} is larger than any memory")
        else:
            zero = True
    if zero:
        total = 0
    if total != (end - begin) * 8:
        _broken(
            name,
            path,
            f"{dtype} of shape {shape!r:.80} takes {total / 8:g} bytes, "
            f"but data_offsets give it {end - begin}",
        )
    return begin, end, dtype, tuple(shape)


def _check_unknown_fields(name: str, entry: Mapping[str, Any], path: Path) -> None:
    # Scalars are ignored, as safetensors does. How deep a list may nest differs between
    # JSON readers, and no writer puts one there.
    for field, value in entry.items():
        if isinstance(value, dict | list) and field not in ("shape", "data_offsets"):
            _broken(name, path, f"its entry holds an unknown field {field!r:.80}")


def _broken(name: str, path: Path, what: str) -> NoReturn:
    raise CorruptCheckpointError(
        what, path=path, tensor=name, offset=_LENGTH.size, hint=_WRITER_AT_FAULT
    )


def _bad_neighbours(
    previous: str, name: str, reached: int, begin: int, data_offset: int, path: Path
) -> NoReturn:
    if begin < reached:
        what = f"its bytes overlap those of {previous!r:.300}"
    else:
        before = f"between {previous!r:.300} and it" if previous else "before it"
        what = f"{begin - reached} bytes {before} belong to no tensor"
    raise CorruptCheckpointError(
        what, path=path, tensor=name, offset=data_offset + begin, hint=_WRITER_AT_FAULT
    )


def _bad_end(tensors: list[TensorInfo], reached: int, size: int, path: Path) -> NoReturn:
    if reached > size:
        cut = next(tensor for tensor in tensors if tensor.end > size)
        raise CorruptCheckpointError(
            f"the file has {size} bytes, but its tensors reach to {reached}",
            path=path,
            tensor=cut.name,
            offset=cut.offset,
            hint=f"the file is truncated: {_COPY_AGAIN}",
        )
    raise CorruptCheckpointError(
        f"{size - reached} bytes at the end belong to no tensor",
        path=path,
        offset=reached,
        hint=_COPY_AGAIN,
    )


def encode_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...], int]],
    metadata: Mapping[str, str],
    alignment: int,
) -> bytes:
    """Length and header of a file, padded with spaces so that its data starts aligned.

    Args:
        tensors: (name, dtype, shape, nbytes) in the order of their bytes.
        alignment: the data section starts at a multiple of so many bytes.
    """
    table: dict[str, Any] = {}
    if metadata:
        table["__metadata__"] = dict(metadata)
    begin = 0
    for name, dtype, shape, nbytes in tensors:
        end = begin + nbytes
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    raw = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    raw += b" " * (-(_LENGTH.size + len(raw)) % alignment)
    if len(raw) > MAX_HEADER:
        raise UnsupportedFormatError(
            f"a header of {len(raw)} bytes is longer than the {MAX_HEADER} that safetensors allows",
            hint="choose a smaller max_shard_size",
        )
    return _LENGTH.pack(len(raw)) + raw
