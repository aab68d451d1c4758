"""OpenAI's response objects, whole and in chunks."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(slots=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int = 0

    def as_dict(self) -> dict[str, int]:
        """OpenAI's usage object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(slots=True)
class CompletionReply:
    """Shapes the answers of /v1/completions.

    Attributes:
        prompt_field: the request's field that holds the prompt.
    """

    prompt_field: ClassVar[str] = "prompt"

    model: str
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self) -> dict[str, Any] | None:
        """The chunk before any text, if there is one."""
        return None

    def chunk(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        """One chunk of a stream."""
        return self._object([self._choice(text, finish_reason)])

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        """The chunk that only counts."""
        return {**self._object([]), "usage": usage.as_dict()}

    def whole(self, text: str, finish_reason: str | None, usage: Usage) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        return {**self.chunk(text, finish_reason), "usage": usage.as_dict()}

    def _choice(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}

    def _object(
        self, choices: list[dict[str, Any]], kind: str = "text_completion"
    ) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


@dataclass(slots=True)
class ChatReply(CompletionReply):
    """Shapes the answers of /v1/chat/completions."""

    prompt_field: ClassVar[str] = "messages"

    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")

    def opening(self) -> dict[str, Any] | None:
        return self._chunk({"role": "assistant", "content": ""}, None)

    def chunk(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        return self._chunk({"content": text} if text else {}, finish_reason)

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return {**self._object([], "chat.completion.chunk"), "usage": usage.as_dict()}

    def whole(self, text: str, finish_reason: str | None, usage: Usage) -> dict[str, Any]:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        return {**self._object([choice], "chat.completion"), "usage": usage.as_dict()}

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._object([choice], "chat.completion.chunk")
