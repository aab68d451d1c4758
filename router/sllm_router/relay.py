"""From an engine's response to the client's, on the server's side of the proxy."""

from __future__ import annotations

from collections.abc import Callable

import aiohttp

from sllm_router import sse
from sllm_router.errors import RequestError, StartFailedError, UpstreamError
from sllm_router.http import HOP_BY_HOP, Headers, Send, error_body, send_error

BUFFERED_BYTES = 1 << 20
"""Answers up to this size are read in full first: if the engine dies, the error is a clean one."""

ERROR_BYTES = 1 << 20

SSE_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
)


class AbortedResponse(Exception):
    """The answer cannot be completed: the connection has to be cut."""


class Relay:
    """One answer to one client.

    Attributes:
        status: the HTTP status sent, 0 before.
        body_started: whether anything of an engine's answer was sent.
        engine_status: the status of an engine's answer, 0 before.
        request_id: echoed in the answer when set.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._event_stream = False
        self.status = 0
        self.body_started = False
        self.engine_status = 0
        self.request_id: str | None = None

    async def heartbeat(self) -> None:
        """A sign of life for a streaming client that waits. Commits to status 200."""
        if not self.status:
            self._event_stream = True
            await self._start(200, SSE_HEADERS)
        await self._body(sse.HEARTBEAT)

    async def run(self, response: aiohttp.ClientResponse, first_byte: Callable[[], None]) -> None:
        """Pass one response on.

        Raises:
            aiohttp.ClientError, asyncio.TimeoutError: the engine broke off.
        """
        self.engine_status = response.status
        if self._event_stream and not is_event_stream(response):
            await self._as_event(response, first_byte)
            return
        length = response.content_length
        if length is not None and length <= BUFFERED_BYTES:
            body = await response.read()
            first_byte()
            self.body_started = True
            await self._start(response.status, passed_on(response))
            await self._end(body)
        elif is_event_stream(response):
            await self._events(response, first_byte)
        else:
            await self._stream(response, first_byte)

    async def _stream(
        self, response: aiohttp.ClientResponse, first_byte: Callable[[], None]
    ) -> None:
        while chunk := await response.content.readany():
            if not self.body_started:
                first_byte()
                self.body_started = True
                await self._start(response.status, passed_on(response))
            await self._body(chunk)
        if not self.status:
            await self._start(response.status, passed_on(response))
        await self._end(b"")

    async def _events(
        self, response: aiohttp.ClientResponse, first_byte: Callable[[], None]
    ) -> None:
        gate = sse.EventGate()
        while chunk := await response.content.readany():
            if not self.body_started:
                first_byte()
                self.body_started = True
                self._event_stream = True
                if not self.status:
                    await self._start(response.status, passed_on(response))
            if ready := gate.feed(chunk):
                await self._body(ready)
        if not self.status:
            await self._start(response.status, passed_on(response))
        await self._end(gate.rest())

    async def _as_event(
        self, response: aiohttp.ClientResponse, first_byte: Callable[[], None]
    ) -> None:
        """The client was promised a stream by a heartbeat, the engine answered otherwise."""
        body = await response.content.read(ERROR_BYTES)
        first_byte()
        self.body_started = True
        fallback = UpstreamError(f"the engine answered with status {response.status}")
        await self._end(sse.error_event(body, error_body(fallback)))

    async def fail(self, error: RequestError) -> None:
        """Tell the client; inside the stream if one has begun.

        Raises:
            AbortedResponse: part of an answer that is no stream was sent already.
        """
        if not self.status:
            self.status = error.status
            headers = self._own_headers()
            if isinstance(error, StartFailedError):
                headers.append((b"x-should-retry", b"false"))  # what OpenAI's clients look at
            await send_error(self._send, error, headers)
        elif self._event_stream:
            await self._end(sse.event(error_body(error)))
        else:
            raise AbortedResponse(str(error))

    def _own_headers(self) -> list[tuple[bytes, bytes]]:
        if self.request_id is None:
            return []
        return [(b"x-request-id", self.request_id.encode("latin-1"))]

    async def _start(self, status: int, headers: Headers) -> None:
        self.status = status
        # The engine may echo the id itself.
        passed = [pair for pair in headers if pair[0] != b"x-request-id"]
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": passed + self._own_headers(),
            }
        )

    async def _body(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def _end(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data})


def is_event_stream(response: aiohttp.ClientResponse) -> bool:
    """Whether the engine answers with server-sent events."""
    return response.headers.get("Content-Type", "").startswith("text/event-stream")


def passed_on(response: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
    """The engine's response headers that concern the client."""
    headers = ((name.lower(), value) for name, value in response.raw_headers)
    return [(name, value) for name, value in headers if name not in HOP_BY_HOP]
