"""The built-in estimator, fed by every load of this process."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sllm.hookspecs import hookimpl

if TYPE_CHECKING:
    from sllm.estimate import MedianEstimator
    from sllm.interfaces import Estimator
    from sllm.loader.base import LoadRecord


@functools.cache
def median() -> MedianEstimator:
    """The process-wide instance: loads and routers learn into the same one."""
    from sllm.estimate import MedianEstimator

    return MedianEstimator()


@hookimpl
def sllm_estimators() -> Iterable[Estimator]:
    return [median()]


@hookimpl
def sllm_load_finished(record: LoadRecord) -> None:
    if record.error is None:
        features = {"tier": record.tier, "device": record.device, "nbytes": record.nbytes}
        median().observe("load", features, record.seconds)
