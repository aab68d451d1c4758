"""The demo's table adds up, and a phase without a trace is an error instead of a zero."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sllm.errors import EngineError
from sllm_bench.demo.breakdown import rows
from sllm_bench.demo.serving import ENGINE_LOGS, RECORDS, TRACE, Answer

LOG = """\
(Worker pid=3) INFO 11-21 [base_loader.py:82] Initializing model took 0.250000 seconds
(Worker pid=3) INFO 11-21 [default_loader.py:501] Loading weights took 1.50 seconds
(EngineCore pid=2) INFO 11-21 [core.py:402] init engine (profile, create kv cache) took 0.75 s
"""
ANSWER = Answer("text", first_token=31.0, engine_start=30.0)


def folder_of_a_start(folder: Path, log: str = LOG, processes: int = 3) -> Path:
    (folder / ENGINE_LOGS).mkdir()
    (folder / ENGINE_LOGS / "demo.log").write_text(log)
    marks = [{"event": "vllm-plugins", "age": 7.0, "pid": n} for n in range(processes)]
    (folder / TRACE).write_text("".join(json.dumps(mark) + "\n" for mark in marks))
    return folder


def test_the_phases_add_up_to_ready(tmp_path: Path) -> None:
    found = rows(folder_of_a_start(tmp_path), ANSWER, nbytes=3_000_000_000)
    *phases, ready, first = found
    assert sum(phase.seconds for phase in phases) == pytest.approx(ready.seconds) == 30.0
    assert first.seconds == 31.0
    assert {phase.phase: phase.seconds for phase in phases}["model built, empty"] == 0.25


def test_without_a_record_the_rate_is_size_by_time(tmp_path: Path) -> None:
    found = rows(folder_of_a_start(tmp_path), ANSWER, nbytes=3_000_000_000)
    (weights,) = [row for row in found if row.phase.startswith("weights")]
    assert (weights.seconds, weights.remark) == (1.5, "2.00 GB/s")


def test_a_load_record_tells_tier_method_and_rate(tmp_path: Path) -> None:
    folder = folder_of_a_start(tmp_path)
    record = {"tier": "disk", "bandwidth": 1.9e9, "files": [{"method": "map"}]}
    (folder / RECORDS).write_text(json.dumps(record) + "\n")
    found = rows(folder, ANSWER, nbytes=3_000_000_000)
    assert "read from disk by map at 1.90 GB/s" in [row.remark for row in found]


@pytest.mark.parametrize("missing", ["Initializing model", "Loading weights", "init engine"])
def test_a_phase_that_left_no_line_is_an_error(tmp_path: Path, missing: str) -> None:
    log = "".join(line for line in LOG.splitlines(keepends=True) if missing not in line)
    with pytest.raises(EngineError, match="no line like"):
        rows(folder_of_a_start(tmp_path, log), ANSWER, nbytes=1)


def test_a_process_that_left_no_mark_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="2 processes"):
        rows(folder_of_a_start(tmp_path, processes=2), ANSWER, nbytes=1)
