"""`convert` killed at any moment leaves no directory that loads, and what was there before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sllm.checkpoint import convert

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


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["exchange", "aside"])
def test_killed_at_very_many_points(mode: str, tmp_path: Path) -> None:
    sweep(tmp_path, 4000, 2, mode)
