"""Samples, what follows from them, and the JSON that keeps both."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = 1
REFERENCE = ("safetensors", "mmap")
"""The row that `of_safetensors` compares with."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One load.

    Attributes:
        round: which round it was taken in.
        resident: fraction of its files in the page cache before it.
        load_seconds: until the loader said it was done.
        touch_seconds: to read one byte of every page afterwards: where lazy loaders pay.
        user_seconds, system_seconds: CPU time of the process during both.
        minor_faults, major_faults: page faults during both.
        details: what the loader itself reports.
    """

    round: int
    resident: float
    load_seconds: float
    touch_seconds: float
    user_seconds: float = 0.0
    system_seconds: float = 0.0
    minor_faults: int = 0
    major_faults: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Load and touch: what is compared."""
        return self.load_seconds + self.touch_seconds


@dataclass(slots=True)
class Row:
    """One variant of one contender.

    Attributes:
        contender, variant, label, limit: see `Variant`.
        samples: one a round.
        failure: why it dropped out; its bytes are checked before the first round.
        wrong: it dropped out because it loaded something else than the files hold.
    """

    contender: str
    variant: str
    label: str
    limit: bool = False
    samples: list[Sample] = field(default_factory=list)
    failure: str | None = None
    wrong: bool = False

    @property
    def complete(self) -> bool:
        """Whether it has figures and nothing speaks against them."""
        return bool(self.samples) and self.failure is None

    @property
    def median(self) -> float:
        """Of the seconds that are compared."""
        return statistics.median(sample.seconds for sample in self.samples)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def best_limit(rows: Sequence[Row]) -> Row | None:
    """The raw limit: the fastest median among the bounds."""
    return min((r for r in rows if r.limit and r.complete), key=lambda r: r.median, default=None)


def reference(rows: Sequence[Row]) -> Row | None:
    """The row of the safetensors library's default."""
    found = (r for r in rows if (r.contender, r.variant) == REFERENCE and r.complete)
    return next(found, None)


def _paired(row: Row, other: Row) -> float | None:
    """Median over rounds of `other`'s seconds by `row`'s, which drift of the machine moves less."""
    theirs = {sample.round: sample.seconds for sample in other.samples}
    both = [theirs[s.round] / s.seconds for s in row.samples if s.round in theirs]
    return statistics.median(both) if both else None


def row_as_dict(row: Row, nbytes: int, rows: Sequence[Row]) -> dict[str, Any]:
    """One row with everything derived from it. GB are 10^9 bytes."""
    value: dict[str, Any] = {
        "contender": row.contender,
        "variant": row.variant,
        "label": row.label,
        "limit": row.limit,
        "status": "wrong" if row.wrong else "failed" if row.failure else "ok",
        "message": row.failure,
        "samples": [asdict(sample) for sample in row.samples],
    }
    if not row.complete:
        return value
    for key in ("load_seconds", "touch_seconds"):
        value[key] = spread([getattr(sample, key) for sample in row.samples])
    value["seconds"] = spread([sample.seconds for sample in row.samples])
    value["gbps"] = {
        "median": nbytes / 1e9 / row.median,  # not of the rates: ratios shall fit the figures
        "min": nbytes / 1e9 / value["seconds"]["max"],
        "max": nbytes / 1e9 / value["seconds"]["min"],
    }
    for key, other in (("of_limit", best_limit(rows)), ("of_safetensors", reference(rows))):
        value[key] = None if other is None else other.median / row.median
        value[f"{key}_paired"] = None if other is None else _paired(row, other)
    return value


def mode_as_dict(rows: Sequence[Row], nbytes: int) -> dict[str, Any]:
    """One mode: its rows and which of them is the raw limit."""
    limit = best_limit(rows)
    return {
        "limit": None if limit is None else limit.label,
        "rows": [row_as_dict(row, nbytes, rows) for row in rows],
    }
