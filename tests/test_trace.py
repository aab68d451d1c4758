"""Marks tell when something happened in which process, and cost nothing when nobody asks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sllm.trace import mark


def test_marks_are_lines_with_the_age_of_their_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "trace"
    monkeypatch.setenv("SLLM_TRACE", str(log))
    mark("first", model="a")
    mark("second")
    first, second = (json.loads(line) for line in log.read_text().splitlines())
    assert (first["event"], first["model"], first["pid"]) == ("first", "a", os.getpid())
    assert 0 <= first["age"] <= second["age"]
    assert first["time"] <= second["time"]


def test_nothing_is_written_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLLM_TRACE", raising=False)
    monkeypatch.chdir(tmp_path)
    mark("unseen")
    assert not list(tmp_path.iterdir())
