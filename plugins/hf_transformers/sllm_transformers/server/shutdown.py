"""The end of the engine process."""

from __future__ import annotations

from types import FrameType

import uvicorn

from sllm_transformers.generation import Worker


class PromptServer(uvicorn.Server):
    """On a signal, clients of running generations get an error at once.

    uvicorn alone would let them stream on until the grace period is over and then cut them off.
    """

    def __init__(self, config: uvicorn.Config, worker: Worker) -> None:
        super().__init__(config)
        self._worker = worker

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._worker.stop()
        super().handle_exit(sig, frame)
