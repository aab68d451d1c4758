"""Lets helper threads use all cores of a worker whose main thread is bound to one of them.

On CPUs vLLM binds each worker's OpenMP threads to cores, one each, through the environment. The
main thread is the first of them, and threads inherit the binding of the thread that starts them:
readers started by it would all share its one core with it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_ITEM = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")


def bound_cores(environment: Mapping[str, str]) -> set[int]:
    """Cores that the OpenMP runtime (GNU or Intel) was told to bind threads to; empty when none."""
    listed = environment.get("GOMP_CPU_AFFINITY", "")
    explicit = re.search(r"proclist=\[([^\]]*)\]", environment.get("KMP_AFFINITY", ""))
    if explicit:
        listed = explicit.group(1)
    cores: set[int] = set()
    for first, last, step in _ITEM.findall(listed):
        cores.update(range(int(first), int(last or first) + 1, int(step or 1) or 1))
    return cores


@contextmanager
def all_cores_of_worker() -> Iterator[None]:
    """Threads started meanwhile may run on every core of this worker."""
    cores = bound_cores(os.environ)
    before = os.sched_getaffinity(0)
    if cores <= before:
        yield
        return
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        # A container may have been given fewer cores since; then things stay as they are.
        yield
        return
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
