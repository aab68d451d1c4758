"""Failed starts are not tried again at once, however many requests ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

FIRST_SECONDS = 1.0
LONGEST_SECONDS = 60.0


@dataclass(slots=True)
class _Failure:
    message: str
    count: int
    until: float


class Backoff:
    """Remembers the last failure of each model and when trying again is due."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures: dict[str, _Failure] = {}

    def failed(self, model: str, message: str) -> float:
        """One more failure in a row; the seconds until the next try."""
        previous = self._failures.get(model)
        count = 1 if previous is None else previous.count + 1
        pause = float(min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** min(count - 1, 16)))
        self._failures[model] = _Failure(message, count, self._clock() + pause)
        return pause

    def succeeded(self, model: str) -> None:
        """Forget the failures of a model."""
        self._failures.pop(model, None)

    def pending(self, model: str) -> tuple[str, float] | None:
        """The last failure's message and the seconds left, while it is too early to try again."""
        failure = self._failures.get(model)
        if failure is None:
            return None
        left = failure.until - self._clock()
        return (failure.message, left) if left > 0 else None
