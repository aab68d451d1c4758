"""One instance of a model, as the fleet keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from sllm.interfaces import Estimate
from sllm.interfaces import Instance as InstanceView
from sllm_router.process import EngineProcess
from sllm_router.registry import Model


class State(str, Enum):
    """Where an instance is in its life."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


@dataclass(eq=False, slots=True)
class Instance:
    """One engine serving one model.

    Attributes:
        id: unique in the life of the router.
        model: what it serves.
        directory: its own files (log, load records).
        process: None until it is spawned.
        state: see `State`.
        running: requests in flight.
        idle_since: clock reading when its last request ended.
    """

    id: str
    model: Model
    directory: Path
    process: EngineProcess | None = None
    state: State = State.STARTING
    running: int = 0
    idle_since: float = field(default=0.0)

    @property
    def url(self) -> str:
        """Where it listens, without a trailing slash."""
        assert self.process is not None
        return self.process.url

    def view(self, *, now: float, waiting: int, restart: Estimate) -> InstanceView:
        """What a placement policy sees.

        An instance that starts or stops, or is waited for, counts as busy.

        Args:
            now: clock reading.
            waiting: requests about to be handed to it.
            restart: seconds to bring it back.
        """
        running = self.running + waiting
        if self.state is not State.READY:
            running = max(1, running)
        idle = 0.0 if running else max(0.0, now - self.idle_since)
        return InstanceView(
            self.id, self.model.name, self.model.engine.name, running, idle, restart
        )
