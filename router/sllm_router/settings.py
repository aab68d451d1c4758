"""Everything `sllm serve` can be told, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one router.

    Attributes:
        capacity: how many instances may exist at once.
        keep_alive: seconds an idle instance is kept; None = until it is in the way.
        start_timeout: seconds an engine may take to become ready.
        queue_timeout: seconds a request may wait for an instance, starting included.
        max_queue: requests that may wait for one model.
        heartbeat: seconds between SSE comments while a streaming request waits.
        read_timeout: seconds of silence from an engine after which a request is given up.
        stop_grace: seconds an engine gets between SIGTERM and SIGKILL.
        drain: seconds that running requests get when the router is asked to end.
        body_limit: bytes a request body may have.
        api_key: asked of clients when set.
        log_directory: where engine logs are kept; None = a temporary place, removed at the end.
    """

    capacity: int
    keep_alive: float | None = None
    start_timeout: float = 600.0
    queue_timeout: float = 900.0
    max_queue: int = 1000
    heartbeat: float = 5.0
    read_timeout: float = 600.0
    stop_grace: float = 15.0
    drain: float = 10.0
    body_limit: int = 64 << 20
    api_key: str | None = None
    log_directory: Path | None = None
