"""`convert` when something goes wrong: a clear error, nothing left, the old model untouched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from checkpoint_files import (
    entries,
    entry,
    layered_model,
    tensor_bytes,
)
from safetensors.torch import save_file

from sllm.checkpoint import convert, read_checkpoint, verify
from sllm.errors import (
    CheckpointError,
    ChecksumError,
    CorruptCheckpointError,
    SllmError,
)


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    """See `layered_model`."""
    return layered_model(tmp_path / "layers")


class Stop(BaseException):
    """Like KeyboardInterrupt."""


def test_interrupting_leaves_nothing(layers: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise Stop

    with pytest.raises(Stop):
        convert(layers, tmp_path / "out", progress=stop)
    assert entries(tmp_path) == {"layers"}
    convert(layers, tmp_path / "out")
    with pytest.raises(Stop):
        convert(layers, tmp_path / "out", progress=stop, overwrite=True)
    assert entries(tmp_path) == {"layers", "out"}
    assert verify(tmp_path / "out").prepared


def test_a_damaged_prepared_source_is_not_copied(layers: Path, tmp_path: Path) -> None:
    (file,) = convert(layers, tmp_path / "one").files.values()
    raw = bytearray(file.path.read_bytes())
    raw[file.tensors[3].offset] ^= 1
    file.path.write_bytes(raw)
    with pytest.raises(ChecksumError) as error:
        convert(tmp_path / "one", tmp_path / "two")
    assert file.tensors[3].name in str(error.value)
    assert entries(tmp_path) == {"layers", "one"}


def shrink(path: Path) -> None:
    """Cut it."""
    os.truncate(path, path.stat().st_size // 2)


def write_into(path: Path) -> None:
    """Change a byte where it lies; its time tells."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    os.utime(path, ns=(0, 0))


@pytest.mark.parametrize("change", [shrink, write_into])
def test_a_source_that_changes_meanwhile(
    change: Callable[[Path], None], layers: Path, tmp_path: Path
) -> None:
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == 5:
            change(layers / "model.safetensors")

    with pytest.raises(CorruptCheckpointError, match="changed while it was read"):
        convert(layers, tmp_path / "out", progress=progress)
    assert entries(tmp_path) == {"layers"}


def test_a_source_replaced_between_looking_and_copying(layers: Path, tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:  # first called before any source is opened
        if not (layers / "old").exists():
            (layers / "model.safetensors").rename(layers / "old")
            save_file({"other": torch.zeros(3)}, layers / "model.safetensors")

    with pytest.raises(CorruptCheckpointError, match="changed while it was read"):
        convert(layers, tmp_path / "out", progress=progress)


_LIMITED = """
import resource, sys
from sllm.checkpoint import convert
from sllm.errors import CheckpointError
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    convert(sys.argv[1], sys.argv[2], overwrite=True)
except CheckpointError as error:
    print(error)
"""


def test_a_limit_on_file_sizes(layers: Path, tmp_path: Path) -> None:
    convert(layers, tmp_path / "out", max_shard_size="2KB")
    before = tensor_bytes(read_checkpoint(tmp_path / "out"))
    command = [sys.executable, "-c", _LIMITED, str(layers), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "File too large" in done.stdout, done.stdout + done.stderr
    assert "ulimit -f" in done.stdout
    assert entries(tmp_path) == {"layers", "out"}
    assert tensor_bytes(read_checkpoint(tmp_path / "out")) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB that holds at most 5 files and directories."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = "size=1m,nr_inodes=6"
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(disk)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(layers: Path, small_disk: Path) -> None:
    (layers / "vocab.txt").write_text("x")
    for number in range(5):
        (layers / f"{number}.txt").write_text("x")
    with pytest.raises(CheckpointError, match="No space left") as error:
        convert(layers, small_disk / "out")
    assert error.value.hint is not None and "free space" in error.value.hint
    assert not entries(small_disk)


def test_a_disk_that_is_too_small_is_seen_before_writing(tmp_path: Path, small_disk: Path) -> None:
    save_file({"a": torch.zeros(400_000)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="bytes are needed"):
        convert(tmp_path / "x.safetensors", small_disk / "out")
    assert not entries(small_disk)


def test_memory_stays_small(tmp_path: Path) -> None:
    """A file of 256 MB is copied by a process that may not have that much."""
    path = tmp_path / "x.safetensors"
    size = 256 << 20
    header = json.dumps({"a": entry("U8", [size], 0, size)}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + size)
    script = (
        "import resource, sys\n"
        "from sllm.checkpoint import convert\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "convert(sys.argv[1], sys.argv[2])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", script, str(path), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 << 10  # kilobytes


def test_every_failure_is_ours(tmp_path: Path) -> None:
    with pytest.raises(SllmError, match="no such file"):
        convert(tmp_path / "missing", tmp_path / "out")
    assert not entries(tmp_path)
