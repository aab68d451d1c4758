"""`verify`, `inspect` and the commands."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import sharing_model
from click.testing import CliRunner
from safetensors.torch import save_file

import sllm
from sllm import _native
from sllm.checkpoint import convert, inspect, read_checkpoint, verify
from sllm.cli import main
from sllm.errors import (
    ChecksumError,
    CorruptCheckpointError,
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `sharing_model`."""
    return sharing_model(tmp_path_factory.mktemp("template") / "prepared")


@pytest.fixture
def prepared(template: Path, tmp_path: Path) -> Path:
    """A copy of `template` to spoil."""
    return Path(shutil.copytree(template, tmp_path / "prepared"))


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
