"""Parts of the benchmark that a whole run does not show."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from sllm.errors import OptionError
from sllm_bench.load import cache, digest, host, plot, suite
from sllm_bench.load.contenders import contender_class, resolve
from sllm_bench.load.contenders.base import Setup
from sllm_bench.load.contenders.raw import Raw
from sllm_bench.load.errors import BenchError
from sllm_bench.load.machine import storage
from sllm_bench.load.model import ModelFiles
from sllm_bench.load.results import Row, Sample, mode_as_dict
from sllm_bench.plugin import bench


def sample(number: int, seconds: float) -> Sample:
    return Sample(round=number, resident=0.0, load_seconds=seconds, touch_seconds=0.0)


def row(label: str, *seconds: float, limit: bool = False) -> Row:
    samples = [sample(number, value) for number, value in enumerate(seconds)]
    return Row(label, label, label, limit, samples)


def test_the_limit_is_the_best_median_of_the_bounds() -> None:
    rows = [row("a", 4, 1, 4, limit=True), row("b", 2, 2, 2, limit=True), row("fast", 1, 1, 1)]
    result = mode_as_dict(rows, nbytes=10**9)
    assert result["limit"] == "b"
    assert [r["of_limit"] for r in result["rows"]] == [0.5, 1.0, 2.0]
    assert result["rows"][0]["gbps"] == {"median": 0.25, "min": 0.25, "max": 1.0}


def test_paired_ratios_compare_within_a_round() -> None:
    # The machine halves its speed in round 1 for both; each round says 0.5.
    rows = [row("limit", 1, 2, 1, limit=True), row("slow", 2, 4, 2)]
    assert mode_as_dict(rows, nbytes=1)["rows"][1]["of_limit_paired"] == 0.5


def test_rows_that_failed_are_no_limit() -> None:
    broken = row("a", 1, 1, limit=True)
    broken.failure = "wrong"
    result = mode_as_dict([broken, row("b", 2, 2, limit=True)], nbytes=1)
    assert result["limit"] == "b"


@pytest.mark.parametrize("mode", ["cold", "warm"])
def test_every_raw_way_reads_the_right_bytes(every_dtype: Path, tmp_path: Path, mode: str) -> None:
    model = ModelFiles.open(every_dtype)
    raw = Raw(Setup(model, tmp_path))
    raw.prepare()
    expected = digest.of_files(model)
    for variant in raw.variants("cold" if mode == "cold" else "warm"):
        raw._bytes[:] = 0
        raw.before(variant.key)
        loaded = raw.load(variant.key)
        found = digest.of_tensors(raw.tensors(loaded))
        raw.release(loaded)
        assert digest.difference(expected, found, frozenset()) is None, variant


def test_raw_says_when_direct_reads_are_refused(
    every_dtype: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: str, flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument", str(path))
        return real(path, flags)

    model = ModelFiles.open(every_dtype)
    raw = Raw(Setup(model, tmp_path))
    raw.prepare()
    monkeypatch.setattr("sllm_bench.load.contenders.raw.os.open", refuse)
    found = digest.of_tensors(raw.tensors(raw.load("direct-2x4")))
    assert digest.difference(digest.of_files(model), found, frozenset()) is None
    assert "refused" in raw.details()["reason"]


def test_touch_reads_every_page_once() -> None:
    import numpy as np

    array = np.ones(10 * host.PAGE + 1, dtype=np.uint8)
    assert host.touch([array, np.empty(0, np.uint8)]) == 11


def test_views_of_a_prepared_model_are_allowed() -> None:
    stored = {"a": ["F32", [1], 5]}
    found = {**stored, "tied": ["F32", [1], 5]}
    assert digest.difference(stored, found, frozenset({"tied"})) is None
    assert digest.difference(stored, found, frozenset()) == "tensor 'tied' is in no file"


def test_unknown_contenders_are_refused() -> None:
    with pytest.raises(OptionError, match="raw, sllm, safetensors"):
        resolve(["fastest"])
    with pytest.raises(OptionError, match="cannot be imported"):
        contender_class("no.such.module:Thing")
    with pytest.raises(OptionError, match="not a contender"):
        contender_class("pathlib:Path")


def test_too_little_memory_is_told_before_anything_starts(
    every_dtype: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "available_memory", lambda: 1000)
    settings = suite.Settings(resolve(["raw", "sllm"]), ("warm",), rounds=1)
    with pytest.raises(BenchError, match="memory for 3 copies"):
        suite.run(ModelFiles.open(every_dtype), settings, lambda text: None)


def test_nothing_runs_on_a_device_nobody_supports(every_dtype: Path) -> None:
    settings = suite.Settings(resolve(["raw"]), ("warm",), rounds=1, device="tpu")
    with pytest.raises(BenchError, match="no contender"):
        suite.run(ModelFiles.open(every_dtype), settings, lambda text: None)


def test_drop_caches_needs_permission(every_dtype: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "DROP_CACHES", Path("/proc/no-such-file"))
    done = CliRunner().invoke(bench, ["load", str(every_dtype), "--drop-caches"])
    assert isinstance(done.exception, OptionError)
    assert "takes root" in str(done.exception)


def test_a_file_in_memory_is_never_cold() -> None:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        pytest.skip("no /dev/shm here")
    path = folder / f"bench-cache-test-{os.getpid()}"
    path.write_bytes(bytes(1 << 20))
    try:
        with pytest.raises(BenchError, match="stays in the page cache"):
            cache.make_cold([path], drop_all=False)
    finally:
        path.unlink()


def test_plot_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OptionError, match="pip install matplotlib"):
        plot.check()


def test_storage_names_the_file_system() -> None:
    assert storage(Path("/proc"))["file_system"] == "proc"


def test_make_model_writes_a_model_that_opens(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        bench, ["make-model", str(tmp_path / "model"), "--arch=opt", "--dtype=bfloat16"]
    )
    assert done.exit_code == 0, done.output
    assert ModelFiles.open(tmp_path / "model").nbytes > 0
