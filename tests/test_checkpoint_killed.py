"""`convert` killed at any moment leaves no directory that loads, and what was there before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sllm.checkpoint import convert, verify

SWEEP = Path(__file__).with_name("kill_sweep.py")


def sweep(work: Path, kills: int, seed: int, mode: str) -> dict[str, int]:
    """Outcomes of that many killed runs, each checked by the sweep itself."""
    for fill, name in enumerate(("one", "two")):
        source = work / f"{name}-source"
        source.mkdir(parents=True)
        tensors = {str(n): torch.full((100 + n,), fill, dtype=torch.int32) for n in range(12)}
        save_file(tensors, source / "model.safetensors")
        (source / "config.json").write_text("{}")
        (source / "tokenizer.json").write_text("{}")
        convert(source, work / "disk" / name)
    command = [sys.executable, str(SWEEP), str(work / "disk"), str(kills), str(seed), mode]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    seen: dict[str, int] = json.loads(done.stdout)
    return seen


@pytest.mark.parametrize("mode", ["exchange", "aside"])
def test_killed_at_many_points(mode: str, tmp_path: Path) -> None:
    seen = sweep(tmp_path, 60, 1, mode)
    assert sum(seen.values()) > 100
    assert seen["old"] > 10  # killed before the exchange
    assert seen["new"] > 10  # killed after it
    assert seen["nothing"] > 10  # killed before the first rename
    if mode == "aside":
        assert seen["put back"] > 0  # killed between the two renames


def test_a_model_that_was_replaced_and_then_deleted_stays_away(tmp_path: Path) -> None:
    """A run killed while it removed the old model must not bring it back."""
    save_file({"new": torch.zeros(3)}, tmp_path / "source.safetensors")
    old = tmp_path / "disk" / ".out.sllm-old-0a1b2c3d"
    convert(tmp_path / "source.safetensors", tmp_path / "disk" / "other")
    (tmp_path / "disk" / "other").rename(old)
    convert(tmp_path / "source.safetensors", tmp_path / "disk" / "out")
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["out"]


_CONVERT = """
import sys
from sllm.checkpoint import convert
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    convert(sys.argv[1], sys.argv[2], overwrite=True, max_shard_size=1000 + 500 * number)
"""


def test_several_at_once_write_the_same_directory(tmp_path: Path) -> None:
    """None takes another's unfinished directory for a leftover; the last one wins, whole."""
    source = tmp_path / "source.safetensors"
    tensors = {str(n): torch.full((100 + n,), n, dtype=torch.int32) for n in range(12)}
    save_file(tensors, source)
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [sys.executable, "-c", _CONVERT, str(source), str(disk / "out"), "4"]
    runs = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    for run in runs:
        run.communicate()
        assert run.returncode == 0
    assert [path.name for path in disk.iterdir()] == ["out"]
    assert verify(disk / "out").tensors == 12


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["exchange", "aside"])
def test_killed_at_very_many_points(mode: str, tmp_path: Path) -> None:
    sweep(tmp_path, 4000, 2, mode)
