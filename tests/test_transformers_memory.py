"""How much memory is left, as the machine and a container say."""

from __future__ import annotations

from pathlib import Path

import pytest

from sllm_transformers import memory


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 kB available and no control group yet."""
    (tmp_path / "meminfo").write_text("MemTotal: 16 kB\nMemAvailable: 8 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    return tmp_path


def limit(container: Path, maximum: str) -> None:
    (container / "memory.max").write_text(f"{maximum}\n")
    (container / "memory.current").write_text("6000\n")
    (container / "memory.stat").write_text("anon 1000\ninactive_file 3000\nactive_file 500\n")


def test_machine_alone(container: Path) -> None:
    assert memory.available_bytes() == 8192


def test_container_without_a_limit(container: Path) -> None:
    limit(container, "max")
    assert memory.available_bytes() == 8192


def test_the_smaller_one_counts(container: Path) -> None:
    limit(container, "7000")
    assert memory.available_bytes() == 7000 - 6000 + 3500
    limit(container, "70000")
    assert memory.available_bytes() == 8192


def test_nothing_known(container: Path) -> None:
    (container / "meminfo").unlink()
    assert memory.available_bytes() is None


def test_this_machine() -> None:
    available = memory.available_bytes()
    assert available is None or available > 0
