"""The routes, as one plain ASGI application: every layer less is time less for every token."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from sllm_router.errors import RequestError, UnauthorizedError
from sllm_router.fleet import Fleet
from sllm_router.http import Receive, Scope, Send, header, send_bytes, send_error, send_json
from sllm_router.metrics import Metrics
from sllm_router.proxy import CAPABILITY, Proxy
from sllm_router.registry import Model, Registry
from sllm_router.relay import AbortedResponse

logger = logging.getLogger("sllm.router")

Handler = Callable[[Scope, Receive, Send], Awaitable[None]]

MODELS = "/v1/models"


class App:
    """What clients talk to."""

    def __init__(
        self, registry: Registry, fleet: Fleet, proxy: Proxy, metrics: Metrics, api_key: str | None
    ) -> None:
        self._registry = registry
        self._fleet = fleet
        self._proxy = proxy
        self._metrics = metrics
        self._api_key = None if api_key is None else api_key.encode()
        self.closing = False
        reading = ("GET", "HEAD")
        self._routes: dict[str, tuple[tuple[str, ...], Handler]] = {
            "/health": (reading, self._health),
            "/metrics": (reading, self._show_metrics),
            MODELS: (reading, self._list_models),
        }
        for path in CAPABILITY:
            self._routes[path] = (("POST",), proxy.handle)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http":
            return
        try:
            await self._route(scope)(scope, receive, send)
        except RequestError as error:
            allow = self._allowed(scope["path"]) if error.status == 405 else ()
            headers = [(b"allow", ", ".join(allow).encode())] if allow else []
            await send_error(send, error, headers)
        except AbortedResponse as error:
            # Returning with the response incomplete makes the server cut the connection.
            logger.warning("%s: cut the connection: %s", scope["path"], error)

    def _route(self, scope: Scope) -> Handler:
        path, method = scope["path"], scope["method"]
        if path.startswith("/v1/"):
            self._authorize(scope)
        allowed = self._allowed(path)
        if not allowed:
            raise RequestError(
                f"no such route: {method} {path[:200]}", status=404, code="unknown_url"
            )
        if method not in allowed:
            raise RequestError(
                f"{path[:200]} does not take {method}", status=405, code="method_not_allowed"
            )
        return self._routes[path][1] if path in self._routes else self._show_model

    def _allowed(self, path: str) -> tuple[str, ...]:
        if path in self._routes:
            return self._routes[path][0]
        return ("GET", "HEAD") if path.startswith(MODELS + "/") else ()

    def _authorize(self, scope: Scope) -> None:
        if self._api_key is None:
            return
        scheme, _, key = (header(scope, b"authorization") or "").partition(" ")
        # Compared in constant time.
        if scheme.lower() != "bearer" or not hmac.compare_digest(
            key.strip().encode("latin-1"), self._api_key
        ):
            raise UnauthorizedError("the API key is missing or wrong")

    async def _health(self, scope: Scope, receive: Receive, send: Send) -> None:
        models = {model.name: self._fleet.state_of(model) for model in self._registry}
        status = "stopping" if self.closing else "ok"
        await send_json(send, 503 if self.closing else 200, {"status": status, "models": models})

    async def _show_metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_bytes(send, 200, self._metrics.render(), self._metrics.content_type.encode())

    async def _list_models(self, scope: Scope, receive: Receive, send: Send) -> None:
        models = [self._describe(model) for model in self._registry]
        await send_json(send, 200, {"object": "list", "data": models})

    async def _show_model(self, scope: Scope, receive: Receive, send: Send) -> None:
        model = self._registry.get(scope["path"][len(MODELS) + 1 :])
        await send_json(send, 200, self._describe(model))

    def _describe(self, model: Model) -> dict[str, Any]:
        return {
            "id": model.name,
            "object": "model",
            "created": model.created,
            "owned_by": "sllm",
            "root": str(model.path),
            "engine": model.engine.name,
            "state": self._fleet.state_of(model),
        }
