"""The statistics behind the estimators: medians, quantiles and lines that outliers do not move."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

UPPER = 0.9
"""The quantile that `sllm.interfaces.Estimate.upper` stands for."""


@dataclass(frozen=True, slots=True)
class Line:
    """seconds = latency + nbytes * slope, both >= 0.

    Attributes:
        latency: seconds.
        slope: seconds a byte.
    """

    latency: float
    slope: float

    def at(self, nbytes: float) -> float:
        """Seconds for `nbytes` bytes."""
        return self.latency + self.slope * nbytes


def fit_line(samples: Sequence[tuple[float, float]]) -> Line:
    """The Theil-Sen line: the median slope over all pairs; right with up to 29 % outliers.

    Args:
        samples: (nbytes, seconds), at least one.

    Source: P. K. Sen, "Estimates of the regression coefficient based on Kendall's tau",
    Journal of the American Statistical Association 63 (1968).
    """
    slopes = [
        (y2 - y1) / (x2 - x1)
        for i, (x1, y1) in enumerate(samples)
        for x2, y2 in samples[i + 1 :]
        if x1 != x2
    ]
    middle = median(y for _, y in samples)
    if not slopes:
        # All of one size: the time is all latency as far as anybody can tell, unless it is
        # bandwidth. Proportional is the safer guess: it does not call a larger load fast.
        size = samples[0][0]
        return Line(0.0, middle / size) if size > 0 else Line(middle, 0.0)
    slope = max(0.0, median(slopes))
    latency = median(y - slope * x for x, y in samples)
    if latency >= 0:
        return Line(latency, slope)
    # Through the origin: the median of the single slopes.
    return Line(0.0, median(y / x for x, y in samples if x > 0))


def upper_quantile(values: Sequence[float], q: float = UPPER) -> float:
    """The value that the next observation stays below with probability `q`.

    The conformal rank ceil((n + 1) q). Fewer observations than that rank needs say nothing about
    the quantile, so the largest one is widened by what is missing.

    Args:
        values: at least one, all >= 0.
    """
    ordered = sorted(values)
    n = len(ordered)
    rank = math.ceil((n + 1) * q)
    if rank <= n:
        return ordered[rank - 1]
    needed = math.ceil(q / (1 - q) - 1e-9)
    return ordered[-1] * (1 + 0.5 * (needed - n) / needed)
