"""What the router expects, asked of and taught to whatever estimators are installed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sllm import plugins
from sllm.interfaces import Estimate, Estimator
from sllm_router.registry import Model

logger = logging.getLogger("sllm.router")

UNKNOWN = Estimate(mean=60.0, upper=600.0)
"""When no estimator has an opinion."""


class Forecast:
    """Every estimator learns; the one registered last that has an answer predicts."""

    def __init__(self, estimators: Iterable[Estimator] | None = None) -> None:
        found = plugins.each("sllm_estimators") if estimators is None else estimators
        self._estimators = list(found)

    def start(self, model: Model) -> Estimate:
        """Seconds until a new instance of the model could answer."""
        return self._predict("start", start_features(model)) or UNKNOWN

    def started(self, model: Model, seconds: float) -> None:
        """An instance of the model took so long to become ready."""
        self._observe("start", start_features(model), seconds)

    def load(self, record: Mapping[str, Any]) -> Estimate | None:
        """What a load that was recorded elsewhere should have taken, before it is learned."""
        return self._predict("load", load_features(record))

    def loaded(self, record: Mapping[str, Any]) -> None:
        """Learn a load that was recorded elsewhere (a `LoadRecord` as plain types)."""
        self._observe("load", load_features(record), record["seconds"])

    def _predict(self, kind: str, features: Mapping[str, Any]) -> Estimate | None:
        for estimator in reversed(self._estimators):
            try:
                estimate: Estimate | None = estimator.predict(kind, features)
            except Exception:
                logger.exception("estimator %r failed to predict %s", estimator.name, kind)
                continue
            if estimate is not None:
                return estimate
        return None

    def _observe(self, kind: str, features: Mapping[str, Any], seconds: float) -> None:
        for estimator in self._estimators:
            try:
                estimator.observe(kind, features, seconds)
            except Exception:
                logger.exception("estimator %r failed to learn a %s", estimator.name, kind)


def start_features(model: Model) -> dict[str, Any]:
    """What a start may depend on."""
    return {"engine": model.engine.name, "model": model.name, "nbytes": model.nbytes}


def load_features(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a load may depend on."""
    return {name: record[name] for name in ("tier", "device", "nbytes")}


def read_records(path: Path) -> list[dict[str, Any]]:
    """The load records an engine left (see `sllm.loader.records`), failed loads left out."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return []
    records = []
    for line in lines:
        try:
            record = json.loads(line)
            load_features(record)
            if record["error"] is None:
                records.append(record)
        except (ValueError, KeyError, TypeError):
            logger.warning("%s holds a line that is no load record: %.200s", path, line)
    return records
