"""What this component contributes through hooks."""

from __future__ import annotations

from collections.abc import Iterable

from sllm.errors import EngineError
from sllm.hookspecs import hookimpl
from sllm.interfaces import Capabilities, Engine, Launch, LaunchRequest

REASON = "this version of sllm does not start Triton yet"


class TritonEngine:
    """Listed, so that asking for it gives a reason instead of an unknown name."""

    name = "triton"

    def unavailable(self) -> str | None:
        return REASON

    def capabilities(self) -> Capabilities:
        return Capabilities(chat=False, completions=False)

    def launch(self, request: LaunchRequest) -> Launch:
        raise EngineError(REASON, hint="use --engine vllm or --engine transformers")


@hookimpl
def sllm_engines() -> Iterable[Engine]:
    return [TritonEngine()]
