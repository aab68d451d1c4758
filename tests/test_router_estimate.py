"""The built-in estimator: robust, monotone, honest about what it has not seen."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm.builtin import estimators
from sllm.errors import OptionError
from sllm.estimate import MedianEstimator
from sllm.estimate.robust import Line, fit_line, upper_quantile
from sllm.interfaces import Estimator
from sllm.loader.base import FileRecord, LoadRecord
from sllm.plugins import named

seconds = st.floats(min_value=1e-4, max_value=1e4)
sizes = st.floats(min_value=1, max_value=1e12)
latencies = st.floats(min_value=1e-3, max_value=60)
bandwidths = st.floats(min_value=1e6, max_value=1e11)


def disk(nbytes: float) -> dict[str, Any]:
    return {"tier": "disk", "device": "cpu", "nbytes": nbytes}


def start(engine: str, model: str, nbytes: float = 0) -> dict[str, Any]:
    return {"engine": engine, "model": model, "nbytes": nbytes}


def taught(samples: list[tuple[float, float]]) -> MedianEstimator:
    estimator = MedianEstimator()
    for nbytes, taken in samples:
        estimator.observe("load", disk(nbytes), taken)
    return estimator


@given(st.lists(st.tuples(sizes, seconds), max_size=80), sizes)
def test_predictions_are_finite_and_ordered(
    samples: list[tuple[float, float]], nbytes: float
) -> None:
    estimate = taught(samples).predict("load", disk(nbytes))
    assert estimate is not None
    assert math.isfinite(estimate.mean)
    assert 0 < estimate.mean <= estimate.upper < math.inf
    assert (estimate.samples > 0) == bool(samples)


@given(st.lists(st.tuples(sizes, seconds), max_size=20), sizes, sizes)
def test_more_bytes_never_take_less_time(
    samples: list[tuple[float, float]], first: float, second: float
) -> None:
    estimator = taught(samples)
    small, large = sorted((first, second))
    low, high = estimator.predict("load", disk(small)), estimator.predict("load", disk(large))
    assert low is not None
    assert high is not None
    assert low.mean <= high.mean * (1 + 1e-9)


@given(latencies, bandwidths, st.lists(sizes, min_size=2, max_size=40, unique=True), sizes)
def test_a_line_is_found_exactly(
    latency: float, bandwidth: float, observed: list[float], asked: float
) -> None:
    truth = Line(latency, 1 / bandwidth)
    estimate = taught([(x, truth.at(x)) for x in observed]).predict("load", disk(asked))
    assert estimate is not None
    # Latency and bandwidth cannot be told apart to more digits than the samples carry.
    spread = max(observed) - min(observed)
    slack = 1e-9 * truth.at(max(observed)) * (1 + asked / spread)
    assert estimate.mean == pytest.approx(truth.at(asked), rel=1e-6, abs=slack)


@given(
    bandwidths,
    st.lists(st.floats(1e9, 1e10), min_size=20, max_size=50, unique=True),
    st.floats(10, 1e4),
    st.data(),
)
def test_a_quarter_of_outliers_does_not_move_the_line(
    bandwidth: float, observed: list[float], factor: float, data: st.DataObject
) -> None:
    truth = Line(0.0, 1 / bandwidth)
    samples = [(x, truth.at(x)) for x in observed]
    outliers = data.draw(
        st.lists(st.sampled_from(range(len(samples))), max_size=len(samples) // 4, unique=True)
    )
    for index in outliers:
        x, y = samples[index]
        samples[index] = (x, y * factor)
    found = fit_line(samples)
    middle = sorted(observed)[len(observed) // 2]
    # The line may tilt within the samples' span, not leave it.
    assert truth.at(middle) * 0.1 <= found.at(middle) <= truth.at(middle) * 3


@given(st.lists(seconds, min_size=1, max_size=64), st.floats(0, 1e12))
def test_a_known_start_takes_its_median(taken: list[float], nbytes: float) -> None:
    estimator = MedianEstimator()
    for value in taken:
        estimator.observe("start", start("vllm", "m", nbytes), value)
        estimator.observe("start", start("transformers", "m", nbytes), value * 100)
    estimate = estimator.predict("start", start("vllm", "m", nbytes))
    assert estimate is not None
    ordered = sorted(taken)
    n = len(ordered)
    assert ordered[(n - 1) // 2] * (1 - 1e-9) <= estimate.mean <= ordered[n // 2] * (1 + 1e-9)
    assert estimate.upper >= estimate.mean


def test_old_observations_are_forgotten() -> None:
    estimator = MedianEstimator(window=4)
    for value in (100.0, 100.0, 100.0, 100.0, 1.0, 1.0, 1.0, 1.0):
        estimator.observe("start", start("vllm", "m"), value)
    estimate = estimator.predict("start", start("vllm", "m"))
    assert estimate is not None
    assert (estimate.mean, estimate.samples) == (1.0, 4)


def test_an_unseen_model_learns_from_its_engine() -> None:
    estimator = MedianEstimator()
    prior = estimator.predict("start", start("vllm", "new", 10**9))
    assert prior is not None
    assert prior.samples == 0
    for size in (1, 2, 4):
        estimator.observe("start", start("vllm", f"m{size}", size * 1e9), 5 + size)
    estimate = estimator.predict("start", start("vllm", "new", 3e9))
    assert estimate is not None
    assert (estimate.mean, estimate.samples) == (pytest.approx(8), 3)


@given(st.lists(seconds, min_size=1, max_size=100))
def test_upper_quantile_bounds(values: list[float]) -> None:
    upper = upper_quantile(values)
    below = sum(value <= upper for value in values)
    assert below >= 0.9 * len(values)
    if len(values) < 9:
        assert upper > max(values), "too few to know the quantile: wider than anything seen"


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_nonsense_is_refused(bad: float) -> None:
    estimator = MedianEstimator()
    with pytest.raises(OptionError):
        estimator.observe("load", disk(1), bad)
    with pytest.raises(OptionError):
        estimator.observe("load", disk(bad), 1)
    with pytest.raises(OptionError):
        estimator.predict("load", disk(bad))
    with pytest.raises(OptionError):
        MedianEstimator(window=0)


def test_unknown_kinds_are_left_to_others() -> None:
    estimator = MedianEstimator()
    estimator.observe("migrate", {}, 1)
    assert estimator.predict("migrate", {}) is None


def test_loads_of_this_process_are_learned_through_the_hook() -> None:
    estimator = named("sllm_estimators", "median")
    assert isinstance(estimator, Estimator)
    # A device of its own keeps other tests' loads out.
    record = LoadRecord("m", "test:0", nbytes=10**9, seconds=2.0)
    record.files.append(FileRecord("f", 10**9, "direct", "", "disk", 0, 2.0, False))
    estimators.sllm_load_finished(record)
    failed = LoadRecord("m", "test:0", nbytes=10**9, seconds=9.0, error="broken")
    estimators.sllm_load_finished(failed)
    estimate = estimator.predict("load", {"tier": "disk", "device": "test:0", "nbytes": 2 * 10**9})
    assert estimate is not None
    assert (estimate.mean, estimate.samples) == (pytest.approx(4), 1)
