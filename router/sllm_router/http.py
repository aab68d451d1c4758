"""The little HTTP we speak ourselves, straight on ASGI: everything else passes through."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from sllm_router.errors import RequestError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
"""Headers about one connection, not about the request (RFC 9110, section 7.6.1)."""


class ClientDisconnected(Exception):
    """The client went away while we read its request."""


def header(scope: Scope, name: bytes) -> str | None:
    """The first value of a request header, `name` in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return None


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole request body.

    Raises:
        RequestError: it is larger than `limit` bytes (413).
        ClientDisconnected: the client left.
    """
    too_large = RequestError(
        f"the request body is larger than {limit} bytes", status=413, code="request_too_large"
    )
    announced = header(scope, b"content-length")
    if announced is not None and announced.isdigit() and int(announced) > limit:
        raise too_large
    parts = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise too_large
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


async def send_bytes(
    send: Send, status: int, body: bytes, content_type: bytes, headers: Headers = ()
) -> None:
    """One complete answer."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", content_type),
                (b"content-length", str(len(body)).encode()),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, status: int, value: object, headers: Headers = ()) -> None:
    """One complete JSON answer."""
    await send_bytes(send, status, json.dumps(value).encode(), b"application/json", headers)


def error_body(error: RequestError) -> dict[str, Any]:
    """OpenAI's error object."""
    return {
        "error": {
            "message": str(error),
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def error_headers(error: RequestError) -> list[tuple[bytes, bytes]]:
    """When to try again; `x-should-retry` is what OpenAI's clients look at."""
    if error.retry_after is not None:
        return [(b"retry-after", str(max(1, math.ceil(error.retry_after))).encode())]
    return []


async def send_error(send: Send, error: RequestError, headers: Headers = ()) -> None:
    """An error in OpenAI's shape."""
    await send_json(send, error.status, error_body(error), [*error_headers(error), *headers])
