"""The manifest, `verify`, `inspect` and the commands."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import tensor_bytes
from click.testing import CliRunner
from safetensors.torch import save_file

import sllm
from sllm import _native
from sllm.checkpoint import convert, inspect, read_checkpoint, save, verify
from sllm.cli import main
from sllm.errors import (
    CheckpointError,
    ChecksumError,
    CorruptCheckpointError,
    SllmError,
    UnsupportedFormatError,
)

MANIFEST = "sllm.json"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards, five tensors, among them a tie and a view."""
    weight = torch.arange(120, dtype=torch.int32).reshape(10, 12)
    state = {
        "embed": weight,
        "head": weight,
        "rows": weight[2:5],
        "norm": torch.ones(33, dtype=torch.bfloat16),
        "big": torch.arange(3000, dtype=torch.int16),
    }
    directory = tmp_path_factory.mktemp("template") / "prepared"
    save(state, directory, config={"model_type": "x"}, max_shard_size=500)
    return directory


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


def test_verify_a_sound_model(prepared: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = verify(prepared, progress=lambda done, total: seen.append((done, total)))
    assert (report.prepared, report.files, report.tensors, report.views) == (True, 3, 3, 2)
    assert report.chunks == 3
    assert seen[-1] == (report.nbytes, report.nbytes)


def test_verify_an_unprepared_model_says_what_it_cannot(every_dtype: Path) -> None:
    report = verify(every_dtype)
    assert (report.prepared, report.chunks) == (False, 0)
    assert "no checksums" in report.note


def test_any_flipped_bit_is_found(tmp_path: Path, every_dtype: Path) -> None:
    """In the header, in the first and last byte, in the middle of each chunk."""
    checkpoint = convert(every_dtype, tmp_path / "m", chunk_size=4096)
    for file in checkpoint.files.values():
        raw = file.path.read_bytes()
        for offset in (100, file.data_offset, len(raw) // 2 + 7, len(raw) - 1):
            for bit in (0, 7):
                changed = bytearray(raw)
                changed[offset] ^= 1 << bit
                file.path.write_bytes(changed)
                with pytest.raises(CorruptCheckpointError) as error:
                    verify(tmp_path / "m")
                assert error.value.path == file.path or offset == 100
                if offset >= file.data_offset:
                    assert isinstance(error.value, ChecksumError)
                    assert error.value.offset == offset // 4096 * 4096
                    inside = [t.name for t in file.tensors if t.offset <= offset < t.end]
                    assert re.search(re.escape(inside[0]) + "|more", str(error.value))
        file.path.write_bytes(raw)
    assert verify(tmp_path / "m").chunks > 100


def test_inspect_is_json_and_complete(prepared: Path) -> None:
    found = json.loads(json.dumps(inspect(prepared)))
    checkpoint = read_checkpoint(prepared)
    assert found["prepared"] is True
    assert found["nbytes"] == checkpoint.nbytes
    assert set(found["tensors"]) == set(checkpoint.tensors)
    assert found["views"]["rows"]["storage_offset"] == 24
    assert found["dtypes"]["I32"] == {"tensors": 1, "nbytes": 480}
    assert found["alignment"] == {"data_at_4096": True, "tensors_at_64": 3, "tensors": 3}
    assert found["manifest"]["tool"] == f"sllm {sllm.__version__}"
    assert [file["name"] for file in found["files"]] == list(checkpoint.files)


def test_inspect_an_unprepared_model(every_dtype: Path) -> None:
    found = inspect(every_dtype)
    assert found["prepared"] is False
    assert found["manifest"] is None
    assert found["files"][0]["chunks"] is None


@pytest.mark.parametrize("warm", [True, False])
def test_inspect_says_what_the_loader_then_does(warm: bool, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4 << 20)}, tmp_path / "model.safetensors")
    path = tmp_path / "model.safetensors"
    with path.open("rb") as file:
        os.fsync(file.fileno())
        file.read()
    if not warm:
        _native.evict(str(path))
    reading = inspect(tmp_path)["files"][0]["reading"]
    assert reading["resident"] == 1.0 if warm else reading["resident"] < 0.01
    with sllm.stream(tmp_path) as loading:
        loading.wait()
        record = loading.record
    assert reading["method"] == record.files[0].method


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The `sllm` command, in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Any:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return call


def test_commands(run: Callable[..., Any], every_dtype: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("convert", every_dtype, out)
    assert done.exit_code == 0, done.output
    assert f"{out}: " in done.output
    done = run("convert", every_dtype, out)
    assert done.exit_code == 1
    assert "--overwrite" in done.output
    done = run("convert", every_dtype, out, "--overwrite", "--max-shard-size", "1GB", "--json")
    assert json.loads(done.stdout)["files"].keys() == {"model.safetensors"}
    done = run("verify", out)
    assert done.exit_code == 0
    assert "every byte agrees" in done.output
    assert json.loads(run("verify", out, "--json").stdout)["prepared"] is True
    assert json.loads(run("inspect", out, "--json").stdout)["prepared"] is True
    done = run("inspect", out, "--tensors")
    assert done.exit_code == 0
    assert "torch.bfloat16.odd" in done.output
    assert "torch.bfloat16.odd" not in run("inspect", out).output


def test_commands_fail_with_one_clear_line(run: Callable[..., Any], tmp_path: Path) -> None:
    for command in (("inspect", tmp_path), ("verify", tmp_path), ("convert", tmp_path, "x")):
        done = run(*command)
        assert done.exit_code == 1
        assert done.output.startswith("Error: the directory is empty")
        assert str(tmp_path) in done.output


def test_verify_command_names_the_place(run: Callable[..., Any], prepared: Path) -> None:
    path = prepared / "model-00003-of-00003.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    done = run("verify", prepared)
    assert done.exit_code == 1
    assert "big" in done.output
    assert path.name in done.output


_SLOW_CONVERT = """
import os, sys
from sllm.checkpoint import writer
from sllm.cli import main
finish = writer.ChunkWriter.finish
def wait(self):
    print("writing", flush=True)
    sys.stdin.read()  # until a signal comes
    return finish(self)
writer.ChunkWriter.finish = wait
main(["convert", sys.argv[1], sys.argv[2]])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_nothing(number: int, every_dtype: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _SLOW_CONVERT, str(every_dtype), str(tmp_path / "out")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())


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
