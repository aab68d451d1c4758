"""`read_checkpoint`: from a path to a `Checkpoint` whose every header has been checked."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sllm.checkpoint.base import Checkpoint, DataFile, TensorInfo
from sllm.checkpoint.files import os_errors
from sllm.checkpoint.header import read_header
from sllm.checkpoint.locate import Located, is_unfinished, locate
from sllm.checkpoint.manifest import MANIFEST, read_prepared
from sllm.errors import CheckpointError, CorruptCheckpointError


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Find the weights at `path` and check every header, size and offset. No tensor is read.

    Args:
        path: a model directory (Hugging Face layout or prepared), or one safetensors file.

    Raises:
        CheckpointNotFoundError: nothing loadable lies there.
        UnsupportedFormatError: pickles, another format, an unknown dtype, a newer manifest.
        CorruptCheckpointError: a header, size, offset or index contradicts the files.
        CheckpointError: it cannot be read at all (no permission, ...).
    """
    with _collector_paused():
        return _read(Path(path))


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without the cycle collector, which would visit every entry of a long header many times.

    It halves the time for 100,000 tensors, and there are no cycles to find.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read(path: Path) -> Checkpoint:
    with os_errors(path):
        is_directory = path.is_dir()
        absolute = path.absolute()
    if not is_directory:
        file = read_header(absolute)
        return _checkpoint(absolute.parent, [file])
    with os_errors(absolute):
        unfinished = is_unfinished(absolute)
        prepared = (absolute / MANIFEST).exists()
    if unfinished:
        raise CheckpointError(
            "a directory that an interrupted write left behind, not a model",
            path=absolute,
            hint="convert or save again; that also removes this directory",
        )
    if prepared:
        return read_prepared(absolute)
    located = locate(absolute)
    files = [read_header(absolute / name, name) for name in located.files]
    checkpoint = _checkpoint(absolute, files)
    _check_against_index(checkpoint, located)
    return checkpoint


def _checkpoint(directory: Path, files: Iterable[DataFile]) -> Checkpoint:
    by_name = {file.name: file for file in files}
    tensors: dict[str, TensorInfo] = {}
    for file in by_name.values():
        for tensor in file.tensors:
            if tensor.name in tensors:
                raise CorruptCheckpointError(
                    f"the tensor is in two files, {tensors[tensor.name].file!r} too, "
                    "and nothing says which one counts",
                    path=file.path,
                    tensor=tensor.name,
                    offset=tensor.offset,
                    hint="remove the file that does not belong to the model, "
                    "or give the one file to load",
                )
            tensors[tensor.name] = tensor
    return Checkpoint(directory, by_name, tensors)


def _check_against_index(checkpoint: Checkpoint, located: Located) -> None:
    """Every tensor the index promises must be there.

    Tensors that a shard holds and the index does not mention are kept: transformers and
    vLLM read whole shards too.
    """
    for tensor, file in located.weight_map.items():
        found = checkpoint.tensors.get(tensor)
        if found is None or found.file != file:
            elsewhere = f"; it is in {found.file!r}" if found else ""
            raise CorruptCheckpointError(
                f"the index {located.index} places this tensor in a file that does not hold it"
                + elsewhere,
                path=checkpoint.directory / file,
                tensor=tensor,
                hint="the index and the weights do not belong together: download the model again",
            )
