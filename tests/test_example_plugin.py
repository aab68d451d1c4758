"""The worked third-party plugin of the documentation, installed and used as a stranger would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import save_file

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "sllm-lab"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs python with the plugin installed beside our own environment."""
    site = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "sllm-lab"
    source.mkdir()
    for file in EXAMPLE.iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, capture_output=True)

    def go(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *argv],
            env={**os.environ, "PYTHONPATH": str(site), **env},
            capture_output=True,
            text=True,
        )

    return go


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import numpy as np

    directory = tmp_path_factory.mktemp("model")
    save_file({"weight": np.arange(6, dtype=np.float32)}, directory / "model.safetensors")
    return directory


def test_it_is_listed(run: Run) -> None:
    done = run("-m", "sllm", "hooks", "--json")
    implementers = {row["hook"]: row["plugins"] for row in json.loads(done.stdout)}
    for hook in ("sllm_sources", "sllm_load_finished", "sllm_cli_commands"):
        assert "lab" in implementers[hook]


def test_its_command_runs(run: Run) -> None:
    done = run("-m", "sllm", "lab", LAB_MODELS="tiny=/models/tiny")
    assert done.stdout == "tiny\t/models/tiny\n"


def test_its_source_and_observer_serve_a_load(run: Run, model: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = run(
        "-c",
        "import sllm; print(sllm.load('lab://tiny')['weight'].tolist())",
        LAB_MODELS=f"tiny={model}",
        LAB_LOG=str(log),
    )
    assert done.stdout == "[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]\n", done.stderr
    assert log.read_text().startswith("lab://tiny ")


def test_its_errors_are_ours(run: Run) -> None:
    done = run("-m", "sllm", "inspect", "lab://absent", LAB_MODELS="tiny=/models/tiny")
    assert done.returncode == 1
    assert "the lab has no model 'absent' - LAB_MODELS names: tiny" in done.stderr
