"""From the files that transformers resolved to one checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sllm.checkpoint import read_checkpoint
from sllm.checkpoint.base import Checkpoint, DataFile, TensorInfo
from sllm.errors import CheckpointError


def checkpoint_of(files: Sequence[str]) -> Checkpoint:
    """The checkpoint made of just these safetensors files.

    When they are all the data files of their directory, it is the directory's checkpoint: with the
    manifest of a prepared model, and the one that `sllm.prefetch(directory)` reads.

    Raises:
        sllm.errors.CorruptCheckpointError: a file contradicts itself.
        sllm.errors.CheckpointError: a file cannot be used.
    """
    paths = [Path(file).absolute() for file in files]
    try:
        whole = read_checkpoint(paths[0].parent)
    except CheckpointError:
        # Not a model directory as we see it (an adapter, a broken index): the files may be fine.
        return _merged(paths)
    if {file.path for file in whole.files.values()} == set(paths):
        return whole
    return _merged(paths)


def _merged(paths: Sequence[Path]) -> Checkpoint:
    """Files read one by one; of a tensor that two files hold the later counts, as usual."""
    files: dict[str, DataFile] = {}
    tensors: dict[str, TensorInfo] = {}
    for path in paths:
        part = read_checkpoint(path)
        files.update(part.files)
        tensors.update(part.tensors)
    kept = {
        name: replace(file, tensors=tuple(t for t in file.tensors if tensors[t.name] == t))
        for name, file in files.items()
    }
    return Checkpoint(directory=paths[0].parent, files=kept, tensors=tensors)
