"""The built-in estimator: medians over what was observed lately."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from sllm.errors import OptionError
from sllm.estimate.robust import Line, fit_line, upper_quantile
from sllm.interfaces import Estimate

Sample = tuple[float, float]
"""(nbytes, seconds)"""

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind of observation is grouped.

    Attributes:
        cohort: features whose values share a line seconds(nbytes).
        identity: features that name the very same thing: its own times beat the line.
        prior: seconds(nbytes) before anything was observed.
        spread: upper / mean of a prior.
    """

    cohort: tuple[str, ...]
    identity: tuple[str, ...]
    prior: Mapping[str, Line]
    spread: float


GB = 1e9

KINDS: Mapping[str, Kind] = {
    # One NVMe disk of the usual kind, and memory; the first real load replaces them.
    "load": Kind(
        cohort=("tier", "device"),
        identity=(),
        prior={"disk": Line(0.01, 1 / (2 * GB)), "page-cache": Line(0.005, 1 / (20 * GB))},
        spread=4.0,
    ),
    # Mostly interpreter start, imports and engine initialisation, hardly bytes.
    "start": Kind(
        cohort=("engine",),
        identity=("engine", "model"),
        prior={"vllm": Line(25.0, 1 / GB), "transformers": Line(10.0, 1 / GB)},
        spread=3.0,
    ),
}

DEFAULT_PRIOR = Line(15.0, 1 / GB)


class MedianEstimator:
    """Medians of recent seconds for what was seen before, a robust line over sizes for the rest.

    Pure: no clock, no I/O. Not thread-safe.
    """

    name = "median"

    def __init__(self, window: int = 64) -> None:
        """`window`: how many recent observations of each thing count."""
        if window < 1:
            raise OptionError(f"window must be at least 1, not {window}")
        self._window = window
        self._groups: dict[Key, deque[Sample]] = {}
        self._lines: dict[Key, Line] = {}

    def observe(self, kind: str, features: Mapping[str, Any], seconds: float) -> None:
        """Learn one observation; kinds this estimator does not know are ignored.

        Raises:
            OptionError: seconds or nbytes is negative or not finite.
        """
        grouping = KINDS.get(kind)
        if grouping is None:
            return
        if not (math.isfinite(seconds) and seconds >= 0):
            raise OptionError(f"seconds must be a finite number >= 0, not {seconds!r}")
        sample = (_nbytes(features), float(seconds))
        for key in _keys(kind, grouping, features):
            self._groups.setdefault(key, deque(maxlen=self._window)).append(sample)
            self._lines.pop(key, None)

    def predict(self, kind: str, features: Mapping[str, Any]) -> Estimate | None:
        """The seconds to expect; None for kinds it does not know.

        Raises:
            OptionError: nbytes is negative or not finite.
        """
        grouping = KINDS.get(kind)
        if grouping is None:
            return None
        nbytes = _nbytes(features)
        keys = _keys(kind, grouping, features)
        if grouping.identity and keys[-1] in self._groups:
            return self._scaled(keys[-1], Line(1.0, 0.0), nbytes)
        if keys[0] in self._groups:
            return self._scaled(keys[0], self._line(keys[0]), nbytes)
        prior = grouping.prior.get(str(features.get(grouping.cohort[0])), DEFAULT_PRIOR)
        mean = prior.at(nbytes)
        return Estimate(mean, mean * grouping.spread, 0)

    def _line(self, key: Key) -> Line:
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = fit_line(list(self._groups[key]))
        return line

    def _scaled(self, key: Key, shape: Line, nbytes: float) -> Estimate:
        """Observed seconds as multiples of what `shape` says; its quantiles carry the error."""
        group = self._groups[key]
        expected = shape.at(nbytes)
        if expected <= 0:
            seconds = [y for _, y in group]
            return _estimate(1.0, seconds)
        ratios = [y / shape.at(x) for x, y in group if shape.at(x) > 0]
        return _estimate(expected, ratios)


def _estimate(expected: float, ratios: list[float]) -> Estimate:
    mean = expected * median(ratios)
    return Estimate(mean, max(mean, expected * upper_quantile(ratios)), len(ratios))


def _keys(kind: str, grouping: Kind, features: Mapping[str, Any]) -> list[Key]:
    """The cohort's key first; the identity's, if the kind has one, last."""
    groups = [grouping.cohort] + ([grouping.identity] if grouping.identity else [])
    return [(kind, *(str(features.get(name)) for name in group)) for group in groups]


def _nbytes(features: Mapping[str, Any]) -> float:
    nbytes = float(features.get("nbytes") or 0)
    if not (math.isfinite(nbytes) and nbytes >= 0):
        raise OptionError(f"nbytes must be a finite number >= 0, not {nbytes!r}")
    return nbytes
