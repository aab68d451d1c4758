"""The built-in placement policies: pure functions of what they are shown."""

from __future__ import annotations

import random
from collections.abc import Sequence

from sllm.interfaces import Decision, Instance, PlacementState


def idle(instances: Sequence[Instance]) -> list[Instance]:
    """Those that could be stopped without hurting a request."""
    return [instance for instance in instances if instance.running == 0]


class StartupTimePolicy:
    """Least estimated time to first token: free place, else the idle instance least missed.

    What an eviction costs is the seconds to bring the victim back, times the chance that somebody
    asks for it soon; the chance falls with the time since anybody did.
    """

    name = "startup-time"

    def decide(self, state: PlacementState) -> Decision:
        if len(state.instances) < state.capacity:
            return Decision("start", reason="there is room")
        candidates = idle(state.instances)
        if not candidates:
            return Decision("wait", reason="every instance is busy")
        victim = min(candidates, key=lambda i: (i.restart.mean / (1 + i.idle_seconds), i.id))
        return Decision(
            "evict",
            victim.id,
            f"{victim.model} was idle for {victim.idle_seconds:.1f} s "
            f"and takes about {victim.restart.mean:.1f} s to bring back",
        )


class RandomPolicy:
    """Any idle instance makes room: the baseline."""

    name = "random"

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)

    def decide(self, state: PlacementState) -> Decision:
        if len(state.instances) < state.capacity:
            return Decision("start", reason="there is room")
        candidates = idle(state.instances)
        if not candidates:
            return Decision("wait", reason="every instance is busy")
        return Decision("evict", self._random.choice(candidates).id, "drawn by lot")
