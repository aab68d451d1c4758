"""Helper threads are not confined to the one core of the thread that starts them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from sllm_vllm.cores import all_cores_of_worker, bound_cores


@pytest.mark.parametrize(
    ("environment", "cores"),
    [
        ({}, set()),
        ({"GOMP_CPU_AFFINITY": "0 1 5"}, {0, 1, 5}),
        ({"GOMP_CPU_AFFINITY": "0-3"}, {0, 1, 2, 3}),
        ({"GOMP_CPU_AFFINITY": "0-6:2 9"}, {0, 2, 4, 6, 9}),
        ({"KMP_AFFINITY": "granularity=fine,explicit,proclist=[2,3]"}, {2, 3}),
        ({"KMP_AFFINITY": "compact"}, set()),
    ],
)
def test_what_the_environment_says(environment: dict[str, str], cores: set[int]) -> None:
    assert bound_cores(environment) == cores


@pytest.fixture
def confined(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[int]]:
    """This thread on one core, as the OpenMP runtime leaves it; yields all of them."""
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("needs two cores")
    monkeypatch.setenv("GOMP_CPU_AFFINITY", " ".join(map(str, sorted(cores))))
    os.sched_setaffinity(0, {min(cores)})
    yield cores
    os.sched_setaffinity(0, cores)


def seen_by_a_thread() -> set[int]:
    seen: set[int] = set()
    thread = threading.Thread(target=lambda: seen.update(os.sched_getaffinity(0)))
    thread.start()
    thread.join()
    return seen


def test_threads_get_all_cores_and_the_starter_keeps_its_own(confined: set[int]) -> None:
    assert seen_by_a_thread() == {min(confined)}
    with all_cores_of_worker():
        assert seen_by_a_thread() == confined
    assert os.sched_getaffinity(0) == {min(confined)}


def test_cores_that_are_not_there_change_nothing(
    confined: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOMP_CPU_AFFINITY", "100000")
    with all_cores_of_worker():
        assert seen_by_a_thread() == {min(confined)}
