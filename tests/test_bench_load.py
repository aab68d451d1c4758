"""`sllm bench load` as a whole: real processes, real files; never a statement about time."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sllm.errors import SllmError
from sllm_bench.load import cache
from sllm_bench.plugin import bench as bench_group

HERE = Path(__file__).resolve().parent
STUCK = "bench_contenders:Stuck"
SLLM = [sys.executable, "-m", "sllm"]


@pytest.fixture(scope="module")
def modes(every_dtype: Path) -> str:
    """Both, unless the test's folder lies on a file system that never lets go of its pages."""
    try:
        cache.make_cold(sorted(every_dtype.glob("*.safetensors")), drop_all=False)
    except SllmError:
        return "--warm"
    return "--both"


def environment(**more: str) -> dict[str, str]:
    """With the misbehaving contenders importable by the workers."""
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, **more}


def bench(directory: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SLLM, "bench", "load", str(directory), *arguments],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def injected(*names: str) -> str:
    return ",".join(["safetensors", *(f"bench_contenders:{name}" for name in names)])


@pytest.fixture(scope="module")
def run(every_dtype: Path, modes: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One whole run with every output, shared by the tests that look at it."""
    folder = tmp_path_factory.mktemp("bench")
    done = bench(
        every_dtype,
        modes,
        "--rounds=2",
        "--contenders=raw,sllm,safetensors",
        f"--json={folder / 'result.json'}",
        f"--markdown={folder / 'result.md'}",
        f"--plot={folder / 'result.png'}",
    )
    assert done.returncode == 0, done.stderr
    return done, json.loads((folder / "result.json").read_text()), folder


def test_every_variant_takes_part_in_every_round(run: Any, modes: str) -> None:
    _, result, _ = run
    assert set(result["modes"]) == ({"cold", "warm"} if modes == "--both" else {"warm"})
    for mode in result["modes"].values():
        rows = mode["rows"]
        assert {row["status"] for row in rows} == {"ok"}
        assert {row["variant"] for row in rows if row["contender"] == "sllm"} == {
            "auto",
            "map",
            "uring",
            "direct",
            "buffered",
            "fresh",
        }
        assert {row["variant"] for row in rows if row["contender"] == "safetensors"} == {
            "mmap",
            "pread",
        }
        assert sum(row["limit"] for row in rows) == 2, "the trial leaves two candidates"
        for row in rows:
            assert [sample["round"] for sample in row["samples"]] == [0, 1]


def test_the_cache_was_as_said(run: Any) -> None:
    _, result, _ = run
    for name, mode in result["modes"].items():
        for row in mode["rows"]:
            for sample in row["samples"]:
                if name == "cold":
                    assert sample["resident"] <= cache.COLD_LIMIT
                else:
                    assert sample["resident"] >= cache.WARM_LIMIT


def test_forced_methods_were_used(run: Any) -> None:
    _, result, _ = run
    for mode in result["modes"].values():
        for row in mode["rows"]:
            if row["contender"] == "sllm" and row["variant"] not in ("auto", "fresh"):
                for sample in row["samples"]:
                    assert sample["details"]["method"] == row["variant"]


def test_figures_follow_from_samples(run: Any) -> None:
    _, result, _ = run
    for mode in result["modes"].values():
        rows = {row["label"]: row for row in mode["rows"]}
        limit = rows[mode["limit"]]
        assert limit["of_limit"] == 1.0
        for row in rows.values():
            seconds = sorted(s["load_seconds"] + s["touch_seconds"] for s in row["samples"])
            median = sum(seconds) / 2
            assert row["seconds"]["median"] == pytest.approx(median)
            assert row["gbps"]["max"] == pytest.approx(result["model"]["nbytes"] / 1e9 / seconds[0])
            assert row["of_limit"] == pytest.approx(limit["seconds"]["median"] / median)
            assert row["of_limit"] <= 1.0 or not row["limit"], "the limit is the best of its kind"


def test_the_machine_is_on_record(run: Any, every_dtype: Path) -> None:
    _, result, _ = run
    assert result["schema"] == 1
    assert result["model"] == {
        "name": every_dtype.name,
        "files": 2,
        "nbytes": sum(path.stat().st_size for path in every_dtype.glob("*.safetensors")),
    }
    assert result["machine"]["storage"]["file_system"] != "unknown"
    assert result["machine"]["cores"] >= 1
    assert len(result["machine"]["load_average"]) == 2, "before and after"
    assert {"sllm", "torch", "safetensors"} <= set(result["versions"])
    assert set(result["first_touch"]) == {"raw", "sllm"}


def test_table_markdown_and_plot(run: Any) -> None:
    done, _, folder = run
    markdown = (folder / "result.md").read_text()
    for label in ("sllm auto", "sllm auto, fresh memory", "safetensors mmap"):
        assert label in done.stdout
        assert f"| {label} |" in markdown
    assert (folder / "result.png").read_bytes().startswith(b"\x89PNG")


def test_a_saved_result_is_shown_again(run: Any) -> None:
    done, _, folder = run
    path = str(folder / "result.json")
    again = CliRunner().invoke(bench_group, ["show", path])
    assert again.output == done.stdout
    markdown = CliRunner().invoke(bench_group, ["show", path, "--markdown"])
    assert markdown.output == (folder / "result.md").read_text()
    other = CliRunner().invoke(bench_group, ["show", __file__])
    assert isinstance(other.exception, SllmError)


def test_json_on_standard_output_is_alone_there(every_dtype: Path) -> None:
    done = bench(every_dtype, "--warm", "--rounds=1", "--contenders=safetensors", "--json=-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["modes"]["warm"]["limit"] is None
    assert "safetensors mmap" in done.stderr


def test_wrong_weights_are_caught(every_dtype: Path) -> None:
    complaints = {
        "flipped": "other bytes than the file",
        "missing": "'large' is missing",
        "reshaped": "the file has BF16 [1500, 1777]",
        "invented": "'phantom' is in no file",
    }
    contenders = injected(*(name.capitalize() for name in complaints))
    done = bench(every_dtype, "--warm", "--rounds=1", f"--contenders={contenders}", "--json=-")
    assert done.returncode == 1
    rows = {row["contender"]: row for row in json.loads(done.stdout)["modes"]["warm"]["rows"]}
    for name, complaint in complaints.items():
        assert rows[name]["status"] == "wrong"
        assert complaint in rows[name]["message"]
        assert complaint in done.stderr
        assert "gbps" not in rows[name], "no figure for wrong weights"
    assert rows["safetensors"]["status"] == "ok"


def test_failures_are_told_and_the_others_go_on(every_dtype: Path) -> None:
    contenders = injected("Raising", "Dying", "Unstartable", "Absent")
    done = bench(every_dtype, "--warm", "--rounds=2", f"--contenders={contenders}", "--json=-")
    assert done.returncode == 1
    result = json.loads(done.stdout)
    rows = {row["contender"]: row for row in result["modes"]["warm"]["rows"]}
    assert "the disk is on fire" in rows["raising"]["message"]
    assert "exit code 7" in rows["dying"]["message"]
    assert "last words" in rows["dying"]["message"], "what it printed is shown, not parsed"
    assert "no licence" in result["broken"]["unstartable"]
    assert "no_such_module_anywhere" in result["skipped"]["absent"]
    assert rows["safetensors"]["status"] == "ok"


def test_a_silent_contender_is_given_up(every_dtype: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "never-read"
    os.mkfifo(fifo)
    done = bench(
        every_dtype,
        "--warm",
        "--rounds=1",
        "--timeout=5",
        f"--contenders={STUCK}",
        BENCH_TEST_FIFO=str(fifo),
    )
    assert done.returncode == 1
    assert "gave no answer within 5 s" in done.stderr


@pytest.fixture
def stuck(every_dtype: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A benchmark whose worker is in the middle of a load, and that worker's pid."""
    fifo = tmp_path / "begun"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        [*SLLM, "bench", "load", str(every_dtype), "--warm", "--contenders", STUCK],
        env=environment(BENCH_TEST_FIFO=str(fifo)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    worker = int(fifo.read_text())
    yield process, worker
    if process.poll() is None:
        process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_the_command(
    stuck: tuple[subprocess.Popen[bytes], int], number: signal.Signals, every_dtype: Path
) -> None:
    process, worker = stuck
    handle = os.pidfd_open(worker)
    try:
        process.send_signal(number)
        assert process.wait(60) != 0
        assert select.select([handle], [], [], 60)[0], "the worker is still there"
    finally:
        os.close(handle)
    if number != signal.SIGKILL:
        assert not list(every_dtype.parent.glob(".sllm-bench-*")), "scratch files were left"
    else:
        for folder in every_dtype.parent.glob(".sllm-bench-*"):
            folder.rmdir()
