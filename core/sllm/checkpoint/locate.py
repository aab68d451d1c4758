"""Which files of a directory are the model's weights.

The choice agrees with transformers and vLLM wherever those two agree with each other;
where a directory holds several candidates and nothing says which, it is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import NoReturn

from sllm.checkpoint.files import list_directory, os_errors, read_json
from sllm.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedFormatError,
)

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

MARKER = ".sllm-unfinished"
"""Lies in a directory for as long as it is being written or removed."""

UNFINISHED = re.compile(r"^\..+\.sllm-(new|old)-[0-9a-f]{8}$")
"""Names of directories that are being written or removed."""

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.bin.index.json")
"""Weights in formats that run code when opened. Never read here."""

OTHER_WEIGHTS = ("*.h5", "*.msgpack", "*.gguf", "*.onnx", "*.ggml")
"""Weights in formats of other frameworks."""

_SHARD = re.compile(r"^(?P<stem>.*)-(?P<part>\d{4,6})-of-(?P<count>\d{4,6})\.safetensors$")
_INDEX_HINT = "the index and the weights do not belong together: download the model again"


@dataclass(frozen=True, slots=True)
class Located:
    """The weights of an unprepared model.

    Attributes:
        files: names relative to the directory, in reading order.
        index: name of the index that lists them, if one does.
        weight_map: tensor name -> file name, from the index.
        left_aside: other copies of the same weights (Mistral's consolidated files).
    """

    files: tuple[str, ...]
    index: str | None = None
    weight_map: Mapping[str, str] = field(default_factory=dict)
    left_aside: tuple[str, ...] = ()


def locate(directory: Path) -> Located:
    """Find the weights in `directory`.

    In this order: ``model.safetensors.index.json``, ``model.safetensors``, the only other
    index, all ``*.safetensors`` (without ``consolidated*`` and ``adapter_model*`` when
    others are there).

    Raises:
        CheckpointNotFoundError: no weights.
        UnsupportedFormatError: pickles or another framework's files only.
        CorruptCheckpointError: a broken index, or shards missing.
    """
    names = list_directory(directory)
    if INDEX in names:
        return _aside(_from_index(directory, INDEX), names)
    if SINGLE in names:
        return _aside(Located((SINGLE,)), names)
    indexes = [name for name in names if re.search(r"\.safetensors\.index(\.[^.]+)?\.json$", name)]
    indexes = _without(indexes, "consolidated*")
    if len(indexes) == 1:
        return _aside(_from_index(directory, indexes[0]), names)
    if indexes:
        raise CheckpointError(
            f"several indexes and nothing that says which one counts: {', '.join(indexes)}",
            path=directory,
            hint=f"rename the right one to {INDEX}",
        )
    files = [name for name, is_file in names.items() if name.endswith(".safetensors") and is_file]
    files = _without(_without(files, "consolidated*"), "adapter_model*")
    if not files:
        _nothing_found(directory, names)
    _check_shards_complete(directory, files)
    return _aside(Located(tuple(files)), names)


def is_unfinished(directory: Path) -> bool:
    """Whether an interrupted write (or removal) left this directory behind."""
    return UNFINISHED.match(directory.name) is not None or (directory / MARKER).exists()


def _without(names: list[str], pattern: str) -> list[str]:
    """The names that do not match, unless that leaves none."""
    return [name for name in names if not fnmatch(name, pattern)] or names


def _aside(found: Located, names: Mapping[str, bool]) -> Located:
    copies = tuple(
        name
        for name in names
        if fnmatch(name, "consolidated*.safetensors*") and name not in found.files
    )
    return Located(found.files, found.index, found.weight_map, copies)


def _from_index(directory: Path, index: str) -> Located:
    path = directory / index
    document, _ = read_json(path, "index", _INDEX_HINT)
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptCheckpointError(
            "the index has no weight_map from tensor names to file names",
            path=path,
            hint=_INDEX_HINT,
        )
    for tensor, file in weight_map.items():
        if not is_safe_name(file):
            raise CorruptCheckpointError(
                f"the index places it in {file!r:.200}, which is no file name inside the directory",
                path=path,
                tensor=tensor,
                hint="do not trust this model: an index must not point elsewhere",
            )
    files = tuple(sorted(set(weight_map.values())))
    for file in files:
        if not file.endswith(".safetensors"):
            raise UnsupportedFormatError(
                f"the index names {file!r:.200}, which is not a safetensors file",
                path=path,
                hint="save the model with safetensors; pickles are never opened here",
            )
        with os_errors(directory / file):
            exists = (directory / file).exists()
        if not exists:
            tensors = [name for name, place in weight_map.items() if place == file]
            raise CorruptCheckpointError(
                f"the index names the file {file!r:.200} ({len(tensors)} tensors), "
                "which is not there",
                path=path,
                tensor=tensors[0],
                hint="the download is incomplete: fetch the missing file",
            )
    return Located(files, index, weight_map)


def is_safe_name(name: object) -> bool:
    """Whether a string names a file below a directory, and nothing else."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path.as_posix() == name != "."


def _check_shards_complete(directory: Path, files: list[str]) -> None:
    """Without an index the numbering in the names is all that shows a missing shard."""
    present = set(files)
    series = {
        (match["stem"], len(match["part"]), match["count"])
        for match in map(_SHARD.match, files)
        if match is not None
    }
    for stem, width, count in series:
        for part in range(1, int(count) + 1):
            expected = f"{stem}-{part:0{width}}-of-{count}.safetensors"
            if expected not in present:
                raise CorruptCheckpointError(
                    f"shard {expected!r} is missing",
                    path=directory,
                    hint="the download is incomplete: fetch the missing file",
                )


def _nothing_found(directory: Path, names: Mapping[str, bool]) -> NoReturn:
    def matching(patterns: tuple[str, ...]) -> str | None:
        return next((n for n in names if any(fnmatch(n, p) for p in patterns)), None)

    if pickled := matching(PICKLES):
        raise UnsupportedFormatError(
            f"only pickled weights here ({pickled}); opening a pickle runs whatever code is in it",
            path=directory,
            hint="load it once with transformers where you trust it and call "
            "model.save_pretrained(new_directory), which writes safetensors",
        )
    if other := matching(OTHER_WEIGHTS):
        raise UnsupportedFormatError(
            f"no safetensors here, only {other}",
            path=directory,
            hint="download the safetensors version of the model",
        )
    raise CheckpointNotFoundError(
        "no *.safetensors file in this directory" if names else "the directory is empty",
        path=directory,
        hint="give the directory that holds config.json and the weights",
    )
