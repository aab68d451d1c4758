"""What `convert` and `save` share: writing the planned files, the index and the manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sllm import __version__
from sllm.checkpoint.base import DataFile, TensorInfo, View
from sllm.checkpoint.layout import FilePlan
from sllm.checkpoint.locate import INDEX
from sllm.checkpoint.manifest import MANIFEST, encode, is_chunk_size
from sllm.checkpoint.writer import ChunkWriter
from sllm.errors import CheckpointError, OptionError

CHUNK_SIZE = 4 << 20
"""Bytes a checksum covers: small enough to name the damaged place, large enough to cost nothing."""

Progress = Callable[[int, int], None]
"""Called with (bytes written, bytes in all)."""

PutTensor = Callable[[TensorInfo, ChunkWriter, Callable[[int], None]], None]
"""Writes one tensor's bytes, reporting each stretch's length."""


def check_chunk_size(chunk_size: int) -> None:
    """Raise OptionError unless chunks are whole pages from 4 KiB to 1 GiB."""
    if not is_chunk_size(chunk_size):
        raise OptionError(
            f"chunk_size {chunk_size} is not possible",
            hint="a multiple of 4096, from 4 KiB to 1 GiB",
        )


def check_space(directory: Path, needed: int) -> None:
    """Fail before the first byte when the disk is certainly too small."""
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    if status.f_blocks and free < needed:  # some network file systems do not tell
        raise CheckpointError(
            f"{needed} bytes are needed and {free} are free",
            path=directory.parent,
            hint="free space on the disk; what was there before is untouched",
        )


def write_files(
    directory: Path,
    plans: Sequence[FilePlan],
    put: PutTensor,
    *,
    metadata: Mapping[str, str],
    chunk_size: int,
    progress: Progress | None,
) -> list[DataFile]:
    """Write every planned file with its checksums."""
    total = sum(plan.size for plan in plans)
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total)

    files = []
    for plan in plans:
        path = directory / plan.name
        with ChunkWriter(path, chunk_size) as writer:
            writer.write(plan.header)
            advance(len(plan.header))
            for tensor in plan.tensors:
                put(tensor, writer, advance)
            sums = writer.finish()
        files.append(
            DataFile(plan.name, path, plan.size, len(plan.header), plan.tensors, metadata, sums)
        )
    return files


def write_index(directory: Path, files: Sequence[DataFile]) -> None:
    """The index other tools need to find their way through several files."""
    if len(files) < 2:
        return
    tensors = [tensor for file in files for tensor in file.tensors]
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)},
        "weight_map": {tensor.name: tensor.file for tensor in tensors},
    }
    text = json.dumps(index, ensure_ascii=False, indent=2) + "\n"
    (directory / INDEX).write_text(text, encoding="utf-8")


def write_manifest(
    directory: Path,
    files: Sequence[DataFile],
    views: Mapping[str, View],
    source: Mapping[str, Any],
) -> None:
    """``sllm.json``, which makes the directory a prepared model."""
    (directory / MANIFEST).write_bytes(encode(files, views, source, f"sllm {__version__}"))
