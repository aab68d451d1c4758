"""Everything in a model's directory that is not its weights: it travels along."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Collection, Iterator
from fnmatch import fnmatch
from pathlib import Path

from sllm.checkpoint.base import Checkpoint
from sllm.checkpoint.files import os_errors
from sllm.checkpoint.locate import INDEX, MARKER, SINGLE, UNFINISHED, locate
from sllm.checkpoint.manifest import MANIFEST

_OTHER_COPIES = (
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
    "tf_model*.h5",
    "flax_model*.msgpack",
    "rust_model.ot",
    "model-*-of-*.safetensors",
    "consolidated*.pth",
)
"""The same weights in other files: nobody loads them when those chosen are there."""

_NOT_PART_OF_IT = (".git", ".cache", "__pycache__", ".ipynb_checkpoints")
"""Directories that tools leave in a model's folder."""


def companions(checkpoint: Checkpoint) -> list[str]:
    """Names, relative to the directory, of the files that belong to the model beside its weights.

    Left out are the weights themselves with their index, copies of them in other files, and
    what version control and caches keep there. Links to files and directories are followed.
    """
    left_out = {*checkpoint.files, MANIFEST, MARKER, INDEX, SINGLE}
    if not checkpoint.prepared:
        located = locate(checkpoint.directory)
        left_out.update(located.left_aside)
        if located.index:
            left_out.add(located.index)
    return sorted(_walk(checkpoint.directory, "", left_out, set()))


def _walk(
    directory: Path, prefix: str, left_out: Collection[str], above: set[tuple[int, int]]
) -> Iterator[str]:
    with os_errors(directory):
        status = directory.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:  # a link that leads back up
            return
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    for entry in entries:
        name = prefix + entry.name
        with os_errors(Path(entry.path)):
            mode = entry.stat().st_mode
        if stat.S_ISDIR(mode):
            if entry.name not in _NOT_PART_OF_IT and UNFINISHED.match(entry.name) is None:
                yield from _walk(Path(entry.path), f"{name}/", left_out, {*above, identity})
        elif (
            stat.S_ISREG(mode)
            and name not in left_out
            and not (not prefix and any(fnmatch(name, pattern) for pattern in _OTHER_COPIES))
        ):
            yield name


def copy_companions(names: Collection[str], source: Path, destination: Path) -> None:
    """Copy files with their names, permissions and contents."""
    for name in names:
        target = destination / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with os_errors(source / name), (source / name).open("rb"):
            pass  # an unreadable source is told from a full destination by which of the two fails
        shutil.copyfile(source / name, target)
        target.chmod(stat.S_IMODE((source / name).stat().st_mode) | stat.S_IRUSR | stat.S_IWUSR)
