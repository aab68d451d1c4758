"""The data path: a request to its engine, the answer back, bytes untouched."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from yarl import URL

from sllm_router.errors import RequestError, UnavailableError, UpstreamError
from sllm_router.fleet import Fleet
from sllm_router.http import (
    HOP_BY_HOP,
    ClientDisconnected,
    Receive,
    Scope,
    Send,
    header,
    read_body,
)
from sllm_router.instances import Instance
from sllm_router.metrics import UNKNOWN_MODEL, Metrics
from sllm_router.registry import Model, Registry
from sllm_router.relay import Relay
from sllm_router.settings import Settings

logger = logging.getLogger("sllm.router")

ATTEMPTS = 2
"""An engine that is found dead before it answered gets the request replaced by a new one, once."""

CAPABILITY = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}
"""The proxied routes, and which of an engine's `Capabilities` each takes."""

NOT_FORWARDED = HOP_BY_HOP | {b"host", b"content-length", b"expect"}


@dataclass(slots=True)
class Exchange:
    """One request on its way.

    Attributes:
        scope: ASGI scope.
        body: request body.
        model: what it asks for.
        streaming: whether it asks for server-sent events.
        request_id: the client's, or a new one.
        began: clock reading at its arrival.
    """

    scope: Scope
    body: bytes
    model: Model
    streaming: bool
    request_id: str
    began: float = field(default_factory=time.monotonic)

    @property
    def path(self) -> str:
        """Path and query as they came."""
        query = self.scope["query_string"]
        path: str = self.scope["raw_path"].decode("latin-1")
        return f"{path}?{query.decode('latin-1')}" if query else path


class Proxy:
    """Forwards requests that name a model in a JSON body."""

    def __init__(
        self,
        registry: Registry,
        fleet: Fleet,
        metrics: Metrics,
        settings: Settings,
        session: aiohttp.ClientSession,
    ) -> None:
        self._registry = registry
        self._fleet = fleet
        self._metrics = metrics
        self._settings = settings
        self._session = session
        self._pumps: set[asyncio.Task[None]] = set()

    @property
    def in_flight(self) -> int:
        """Requests not answered yet."""
        return len(self._pumps)

    def abort_all(self) -> None:
        """Give up every request; each client is told why."""
        for pump in self._pumps:
            pump.cancel("shutdown")

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            RequestError: before anything was sent.
        """
        relay = Relay(send)
        model = UNKNOWN_MODEL
        try:
            body = await read_body(scope, receive, self._settings.body_limit)
            exchange = self._parse(scope, body)
            model = exchange.model.name
            relay.request_id = exchange.request_id
            with self._metrics.in_flight.labels(model).track_inprogress():
                await self._run(exchange, relay, receive)
        except ClientDisconnected:
            self._metrics.disconnects.labels(model).inc()
            relay.status = relay.status or 499
        except RequestError as error:
            await relay.fail(error)
        finally:
            self._metrics.requests.labels(model, scope["path"], str(relay.status or 500)).inc()

    def _parse(self, scope: Scope, body: bytes) -> Exchange:
        fields = parse_object(body)
        name = fields.get("model")
        if not isinstance(name, str) or not name:
            raise RequestError("you must name a model", param="model", code="missing_model")
        request_id = header(scope, b"x-request-id") or uuid.uuid4().hex
        model = self._registry.get(name)
        if not getattr(model.engine.capabilities(), CAPABILITY[scope["path"]]):
            raise RequestError(
                f"the engine of {name!r} ({model.engine.name}) does not serve {scope['path']}",
                code="unsupported_route",
            )
        return Exchange(scope, body, model, fields.get("stream") is True, request_id)

    async def _run(self, exchange: Exchange, relay: Relay, receive: Receive) -> None:
        """Pump until done, until the client leaves, or until the router ends."""
        pump = asyncio.create_task(self._pump(exchange, relay))
        left = asyncio.create_task(disconnected(receive))
        self._pumps.add(pump)
        try:
            await asyncio.wait({pump, left}, return_when=asyncio.FIRST_COMPLETED)
            if not pump.done():
                pump.cancel()
                await asyncio.wait({pump})
                if pump.cancelled():
                    raise ClientDisconnected
            if pump.cancelled():
                raise UnavailableError("the router is shutting down")
            pump.result()
        finally:
            self._pumps.discard(pump)
            pump.cancel()
            left.cancel()

    async def _pump(self, exchange: Exchange, relay: Relay) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            instance = self._fleet.take(exchange.model)
            if instance is None:
                instance = await self._wait_for_instance(exchange, relay)
            try:
                await self._forward(exchange, instance, relay)
                if relay.engine_status >= 500:
                    self._fleet.suspect(instance)
                return
            except (aiohttp.ClientError, ConnectionError, asyncio.TimeoutError) as error:
                await self._upstream_failed(exchange, instance, relay, error, attempt)
            finally:
                self._fleet.release(instance)

    async def _upstream_failed(
        self, exchange: Exchange, instance: Instance, relay: Relay, error: Exception, attempt: int
    ) -> None:
        """Return if another attempt is in order, else raise what the client is told."""
        name = exchange.model.name
        logger.warning("%s: request %s: %r", name, exchange.request_id, error)
        if isinstance(error, asyncio.TimeoutError):
            raise UpstreamError(
                f"the engine of {name!r} sent nothing for {self._settings.read_timeout:g} s",
                status=504,
                code="engine_timeout",
            ) from error
        await self._fleet.examine(instance)
        if relay.body_started or attempt == ATTEMPTS:
            raise UpstreamError(
                f"the engine of {name!r} broke off while it handled the request"
            ) from error

    async def _wait_for_instance(self, exchange: Exchange, relay: Relay) -> Instance:
        """Wait for a start; a streaming client gets a sign of life now and then."""
        self._metrics.cold_requests.labels(exchange.model.name).inc()
        waiter = asyncio.create_task(self._fleet.acquire(exchange.model))
        try:
            while True:
                done, _ = await asyncio.wait({waiter}, timeout=self._settings.heartbeat)
                if done:
                    return waiter.result()
                if exchange.streaming:
                    await relay.heartbeat()
        except asyncio.CancelledError:
            waiter.cancel()
            await asyncio.wait({waiter})
            if not waiter.cancelled() and waiter.exception() is None:
                self._fleet.release(waiter.result())  # it was handed over at the last moment
            raise

    async def _forward(self, exchange: Exchange, instance: Instance, relay: Relay) -> None:
        async with self._session.post(
            URL(instance.url + exchange.path, encoded=True),
            data=exchange.body,
            headers=self._headers(exchange),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            allow_redirects=False,
        ) as response:
            await relay.run(response, lambda: self._first_byte(exchange))

    def _first_byte(self, exchange: Exchange) -> None:
        seconds = time.monotonic() - exchange.began
        self._metrics.first_byte.labels(exchange.model.name).observe(seconds)

    def _headers(self, exchange: Exchange) -> list[tuple[str, str]]:
        skip = NOT_FORWARDED
        if self._settings.api_key is not None:
            skip = skip | {b"authorization"}  # it was meant for us
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in exchange.scope["headers"]
            if name not in skip and name != b"x-request-id"
        ]
        headers.append(("x-request-id", exchange.request_id))
        return headers


def parse_object(body: bytes) -> dict[str, Any]:
    """The request body as a JSON object.

    Raises:
        RequestError: it is none.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"the request body is not valid JSON: {error}", code="invalid_json"
        ) from error
    if not isinstance(fields, dict):
        raise RequestError("the request body must be a JSON object", code="invalid_json")
    return fields


async def disconnected(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
