"""From the weight files vLLM chose to loads of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sllm
from sllm.errors import CheckpointError, UnsupportedFormatError
from sllm_vllm.cores import all_cores_of_worker
from sllm_vllm.options import LoaderOptions

if TYPE_CHECKING:
    import torch

    from sllm.checkpoint.base import Checkpoint
    from sllm.loader import Loading
    from sllm.loader.base import LoadRecord

Skip = Callable[[str], bool]
"""Whether this rank does without the tensor of that name."""


@dataclass(frozen=True, slots=True)
class Part:
    """One load: a model directory or a single file.

    Attributes:
        path: what to read.
        names: tensors to read; None reads all.
    """

    path: Path
    names: tuple[str, ...] | None = None


def parts(files: Sequence[str], skip: Skip | None = None) -> list[Part]:
    """The loads that together read just `files`, as few as possible.

    A directory is one load where it can be, so that a manifest's checksums and views are used and
    one file is read while the last is being copied. vLLM may also choose files that no index names
    (`consolidated*.safetensors`, files of subdirectories): those are read one by one.

    Args:
        files: safetensors files, as vLLM selected them.
        skip: tensors not to read, e.g. experts of other ranks.

    Raises:
        UnsupportedFormatError: one of them is not a safetensors file.
        CheckpointError: one of them cannot be used.
    """
    wanted = {Path(file).resolve(): Path(file) for file in files}
    for path in wanted.values():
        if path.suffix != ".safetensors":
            raise UnsupportedFormatError(
                "not a safetensors file",
                path=path,
                hint="use --load-format auto for other formats",
            )
    folders = {path.parent for path in wanted.values()}
    if len(folders) == 1:
        whole = _directory_part(folders.pop(), set(wanted), skip)
        if whole is not None:
            return [whole]
    ordered = sorted(wanted.values())
    return [Part(path, _names(sllm.read_checkpoint(path), None, skip)) for path in ordered]


def _directory_part(folder: Path, wanted: set[Path], skip: Skip | None) -> Part | None:
    """The directory as one load; None when it does not name all wanted files."""
    try:
        checkpoint = sllm.read_checkpoint(folder)
    except CheckpointError:
        # The files may be fine one by one; if not, reading them says what is wrong.
        return None
    present = {file.path.resolve(): name for name, file in checkpoint.files.items()}
    if not wanted <= present.keys():
        return None
    chosen = {present[path] for path in wanted}
    return Part(folder, _names(checkpoint, chosen, skip))


def _names(
    checkpoint: Checkpoint, files: set[str] | None, skip: Skip | None
) -> tuple[str, ...] | None:
    """Names in `files` (None: all) that are not skipped; None when that is everything."""

    def read(name: str) -> bool:
        view = checkpoint.views.get(name)
        stored = checkpoint.tensors[name if view is None else view.base]
        return (files is None or stored.file in files) and not (skip and skip(name))

    names = tuple(name for name in checkpoint.names if read(name))
    return None if len(names) == len(checkpoint.names) else names


def start(part: Part, options: LoaderOptions) -> Loading:
    """Begin one load."""
    with all_cores_of_worker():
        return sllm.stream(
            part.path,
            names=part.names,
            options=options.load,
            prefetch_files=options.prefetch_files,
        )


def read(
    todo: Sequence[Part],
    options: LoaderOptions,
    records: list[LoadRecord],
    started: Loading | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of all parts while later bytes are still on their way.

    Args:
        todo: what to read, in order.
        options: how.
        records: gets the record of every finished load.
        started: the load of the first part, if it is running already.
    """
    waiting = list(todo)
    current = started
    if waiting and current is None:
        current = start(waiting[0], options)
    waiting = waiting[1:]
    upcoming: Loading | None = None
    try:
        while current is not None:
            # One part ahead, or the disk would idle while the last tensors are copied.
            upcoming = start(waiting.pop(0), options) if waiting else None
            with current:
                yield from current
            records.append(current.record)
            current, upcoming = upcoming, None
    finally:
        for loading in (current, upcoming):
            if loading is not None:
                loading.close()
