"""Server-sent events, as far as a proxy has to know them."""

from __future__ import annotations

import json
from typing import Any

HEARTBEAT = b": waiting\n\n"
"""A comment: keeps the connection alive, clients skip it."""

LONGEST_HELD = 1 << 20


def event(value: object) -> bytes:
    """One event with JSON data."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def error_event(body: bytes, fallback: dict[str, Any]) -> bytes:
    """An engine's JSON error body as an event; `fallback` when it is not one."""
    try:
        value = json.loads(body)
    except ValueError:
        return event(fallback)
    if not isinstance(value, dict) or "error" not in value:
        # FastAPI's own errors have another shape.
        fallback["error"]["message"] += ": " + json.dumps(value)[:2000]
        value = fallback
    return event(value)


class EventGate:
    """Lets whole events pass, so that a stream which breaks off can still end with a clean one.

    The bytes are never changed, only an event's beginning may wait for its end.
    """

    def __init__(self) -> None:
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """What can be sent after `chunk` has arrived."""
        if not self._held and chunk.endswith((b"\n\n", b"\r\n\r\n")):
            return chunk
        data = self._held + chunk
        end = max(_after(data, b"\n\n"), _after(data, b"\r\n\r\n"))
        if len(data) - end > LONGEST_HELD:
            end = len(data)
        self._held = data[end:]
        return data[:end]

    def rest(self) -> bytes:
        """What is left of a stream that ended properly."""
        held, self._held = self._held, b""
        return held


def _after(data: bytes, separator: bytes) -> int:
    found = data.rfind(separator)
    return 0 if found < 0 else found + len(separator)
