"""The manifest: what it promises is checked, and hostile ones are refused."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import sharing_model, tensor_bytes
from safetensors.torch import save_file

from sllm.checkpoint import read_checkpoint, verify
from sllm.errors import (
    CheckpointError,
    CorruptCheckpointError,
    SllmError,
    UnsupportedFormatError,
)

MANIFEST = "sllm.json"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `sharing_model`."""
    return sharing_model(tmp_path_factory.mktemp("template") / "prepared")


@pytest.fixture
def prepared(template: Path, tmp_path: Path) -> Path:
    """A copy of `template` to spoil."""
    return Path(shutil.copytree(template, tmp_path / "prepared"))


def signed(document: Any) -> bytes:
    """A manifest's bytes with a right checksum, however wrong the rest."""
    document["checksum"] = "crc32:00000000"
    raw = json.dumps(document, indent=1).encode()
    return raw.replace(b"crc32:00000000", f"crc32:{zlib.crc32(raw):08x}".encode(), 1)


def rewrite(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply a change to the manifest, and sign it."""
    document = json.loads((directory / MANIFEST).read_text())
    change(document)
    (directory / MANIFEST).write_bytes(signed(document))


def test_what_is_written_is_read(prepared: Path) -> None:
    checkpoint = read_checkpoint(prepared)
    assert checkpoint.prepared
    assert len(checkpoint.files) == 3
    assert set(checkpoint.tensors) == {"embed", "norm", "big"}
    assert set(checkpoint.views) == {"head", "rows"}
    rewrite(prepared, lambda document: None)  # the layout of the JSON does not matter
    assert read_checkpoint(prepared) == checkpoint


def test_additions_of_later_versions_are_ignored(prepared: Path) -> None:
    checkpoint = read_checkpoint(prepared)
    rewrite(prepared, lambda document: document.update(extra={"anything": [1.5, None]}))
    assert read_checkpoint(prepared) == checkpoint


FILE = "model-00001-of-00003.safetensors"


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change: set the value at a path into the document."""

    def change(document: dict[str, Any]) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


def drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    """A change: remove what is at a path."""

    def change(document: dict[str, Any]) -> None:
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return change


HOSTILE = {
    "another format": put("format", value="other"),
    "no format": drop("format"),
    "version 0": put("version", value=0),
    "version true": put("version", value=True),
    "version text": put("version", value="1"),
    "no files": put("files", value={}),
    "files a list": put("files", value=[]),
    "files missing": drop("files"),
    "tensors missing": drop("tensors"),
    "views missing": drop("views"),
    "views a list": put("views", value=[]),
    "a file less": drop("files", FILE),
    "a file that is not there": put("files", "more.safetensors", value={"size": 8}),
    "a path out": put("files", "../x.safetensors", value={"size": 8}),
    "an absolute path": put("files", "/etc/x.safetensors", value={"size": 8}),
    "not safetensors": put("files", "config.json", value={"size": 8}),
    "entry a number": put("files", FILE, value=7),
    "size wrong": put("files", FILE, "size", value=4097),
    "size negative": put("files", FILE, "size", value=-1),
    "size absurd": put("files", FILE, "size", value=1 << 80),
    "size a float": put("files", FILE, "size", value=1.5),
    "size true": put("files", FILE, "size", value=True),
    "data offset wrong": put("files", FILE, "data_offset", value=8192),
    "data offset missing": drop("files", FILE, "data_offset"),
    "chunk size 0": put("files", FILE, "chunk_size", value=0),
    "chunk size odd": put("files", FILE, "chunk_size", value=5000),
    "chunk size absurd": put("files", FILE, "chunk_size", value=1 << 70),
    "no checksums": put("files", FILE, "crc32c", value=[]),
    "checksums text": put("files", FILE, "crc32c", value="abc"),
    "checksum too large": put("files", FILE, "crc32c", value=[1 << 32]),
    "checksum negative": put("files", FILE, "crc32c", value=[-1]),
    "checksum a float": put("files", FILE, "crc32c", value=[1.0]),
    "tensor missing": drop("tensors", "norm"),
    "tensor too many": put("tensors", "more", value={"dtype": "U8"}),
    "tensor of another dtype": put("tensors", "norm", "dtype", value="F16"),
    "tensor of another shape": put("tensors", "norm", "shape", value=[3, 11]),
    "tensor elsewhere": put("tensors", "norm", "offset", value=4160),
    "tensor in another file": put("tensors", "norm", "file", value=FILE[:-1]),
    "view named as a tensor": put("views", "norm", value={"base": "embed"}),
    "view a list": put("views", "rows", value=[]),
    "view without base": drop("views", "rows", "base"),
    "view of nothing": put("views", "rows", "base", value="nothing"),
    "view of a view": put("views", "rows", "base", value="head"),
    "view of a list": put("views", "rows", "base", value=["embed"]),
    "view's dtype unknown": put("views", "rows", "dtype", value="C128"),
    "view's dtype a list": put("views", "rows", "dtype", value=["I32"]),
    "view's dtype too wide": lambda d: d["views"]["rows"].update(dtype="I64", storage_offset=25),
    "view's shape text": put("views", "rows", "shape", value="33"),
    "view's shape a number": put("views", "rows", "shape", value=3),
    "view's shape negative": put("views", "rows", "shape", value=[-3, 12]),
    "view's shape too large": put("views", "rows", "shape", value=[9, 12]),
    "view's shape absurd": put("views", "rows", "shape", value=[1 << 62, 1 << 62]),
    "view's expansion absurd": lambda d: d["views"].update(
        rows={"base": "embed", "dtype": "I32", "shape": [1 << 40, 1 << 40],
              "stride": [0, 0], "storage_offset": 0}
    ),
    "view's stride negative": put("views", "rows", "stride", value=[-12, 1]),
    "view's stride too long": put("views", "rows", "stride", value=[48, 1]),
    "view's stride missing one": put("views", "rows", "stride", value=[1]),
    "view's stride a float": put("views", "rows", "stride", value=[12.0, 1]),
    "view before its base": put("views", "rows", "storage_offset", value=-1),
    "view beyond its base": put("views", "rows", "storage_offset", value=85),
    "view far beyond its base": put("views", "rows", "storage_offset", value=1 << 90),
    "empty view beyond its base": lambda d: d["views"]["rows"].update(
        shape=[0, 12], storage_offset=121
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_manifests_are_refused(case: str, prepared: Path) -> None:
    rewrite(prepared, HOSTILE[case])
    with pytest.raises(CorruptCheckpointError) as error:
        read_checkpoint(prepared)
    assert error.value.hint


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"null", b"{", b"\xff", b'{"format":"sllm-checkpoint"}']
)
def test_broken_manifests_are_refused(raw: bytes, prepared: Path) -> None:
    (prepared / MANIFEST).write_bytes(raw)
    with pytest.raises(CorruptCheckpointError, match="convert the model again") as error:
        read_checkpoint(prepared)
    assert error.value.path == prepared / MANIFEST


def test_a_manifest_edited_by_hand_is_refused(prepared: Path) -> None:
    text = (prepared / MANIFEST).read_text()
    (prepared / MANIFEST).write_text(text.replace('"storage_offset": 24', '"storage_offset": 36'))
    assert text != (prepared / MANIFEST).read_text()
    with pytest.raises(CorruptCheckpointError, match="edited or damaged"):
        read_checkpoint(prepared)


def test_newer_manifests_are_told_apart_from_broken_ones(prepared: Path) -> None:
    rewrite(prepared, put("version", value=2))
    with pytest.raises(UnsupportedFormatError, match="upgrade sllm"):
        read_checkpoint(prepared)
    rewrite(prepared, put("version", value=1))
    rewrite(prepared, put("target", value={"engine": "vllm"}))
    with pytest.raises(UnsupportedFormatError, match="target"):
        read_checkpoint(prepared)


def test_weights_written_over_by_another_tool(prepared: Path) -> None:
    save_file({"embed": torch.zeros(7)}, prepared / FILE)
    with pytest.raises(CorruptCheckpointError, match="changed after they were prepared"):
        read_checkpoint(prepared)
    (prepared / MANIFEST).unlink()
    (prepared / "model.safetensors.index.json").unlink()
    assert "embed" in read_checkpoint(prepared).tensors


def test_a_missing_file(prepared: Path) -> None:
    (prepared / FILE).unlink()
    with pytest.raises(CorruptCheckpointError, match="not there") as error:
        read_checkpoint(prepared)
    assert error.value.path == prepared / FILE


def test_stale_files_do_not_count(prepared: Path) -> None:
    before = read_checkpoint(prepared)
    save_file({"stale": torch.zeros(7)}, prepared / "stale.safetensors")
    assert read_checkpoint(prepared) == before


def test_moving_and_copying_a_prepared_model(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "copy")
    assert tensor_bytes(read_checkpoint(tmp_path / "copy")) == tensor_bytes(
        read_checkpoint(prepared)
    )
    prepared.rename(tmp_path / "moved")
    assert verify(tmp_path / "moved").prepared


def test_unfinished_directories_are_refused(prepared: Path, tmp_path: Path) -> None:
    for name in (".m.sllm-new-0a1b2c3d", ".m.sllm-old-0a1b2c3d"):
        shutil.copytree(prepared, tmp_path / name)
        with pytest.raises(CheckpointError, match="interrupted write"):
            read_checkpoint(tmp_path / name)
    (prepared / ".sllm-unfinished").touch()
    with pytest.raises(SllmError, match="interrupted write"):
        read_checkpoint(prepared)
