"""The life of one router process: listen, serve, end cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import aiohttp
import uvicorn

from sllm.errors import OptionError
from sllm.interfaces import PlacementPolicy
from sllm_router.app import App
from sllm_router.errors import StartFailedError
from sllm_router.fleet import Fleet
from sllm_router.forecast import Forecast
from sllm_router.metrics import Metrics
from sllm_router.proxy import Proxy
from sllm_router.registry import Registry
from sllm_router.settings import Settings
from sllm_router.starter import Starter

logger = logging.getLogger("sllm.router")

UPSTREAM_KEEP_ALIVE = 3.0
"""Below the 5 s after which engines on uvicorn close idle connections: never reuse a dying one."""

CLIENT_KEEP_ALIVE = 30

SLOW_CLIENT_SECONDS = 3
"""For clients to take their last bytes when the router ends; then they are cut off."""


class HttpServer(uvicorn.Server):
    """uvicorn without its own signal handling: ending is ours to order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one.

    Raises:
        OptionError: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OptionError(
            f"cannot listen on {host} port {port}: {error.strerror or error}",
            hint="choose another with --host and --port (0 takes a free one)",
        ) from error
    return listener


class Router:
    """Everything behind one listening socket."""

    def __init__(self, registry: Registry, policy: PlacementPolicy, settings: Settings) -> None:
        self._registry = registry
        self._policy = policy
        self._settings = settings
        self._end_requests = 0
        self._end = asyncio.Event()
        self._hurry = asyncio.Event()

    def ask_to_end(self) -> None:
        """End in good order; asked a second time, at once."""
        self._end_requests += 1
        (self._end if self._end_requests == 1 else self._hurry).set()

    async def run(
        self, listener: socket.socket, *, eager: bool, on_ready: Callable[[], None]
    ) -> None:
        """Serve until `ask_to_end`; when this returns no engine is left.

        Args:
            listener: a bound socket.
            eager: start every model at once instead of at its first request.
            on_ready: called when requests are taken.
        """
        metrics = Metrics()
        forecast = Forecast()
        async with client_session(self._settings.read_timeout) as session:
            starter = Starter(self._settings, forecast, metrics, session)
            fleet = Fleet(self._settings, self._policy, forecast, metrics, starter)
            proxy = Proxy(self._registry, fleet, metrics, self._settings, session)
            app = App(self._registry, fleet, proxy, metrics, self._settings.api_key)
            server = HttpServer(
                uvicorn.Config(
                    app,
                    lifespan="off",
                    ws="none",
                    log_config=None,
                    access_log=False,
                    # The engine's own headers pass through.
                    server_header=False,
                    date_header=False,
                    timeout_keep_alive=CLIENT_KEEP_ALIVE,
                    timeout_graceful_shutdown=math.ceil(self._settings.drain) + SLOW_CLIENT_SECONDS,
                )
            )
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                await started(server, serving)
                on_ready()
                if eager:
                    self._start_all(fleet)
                ended = asyncio.create_task(self._end.wait())
                await asyncio.wait({serving, ended}, return_when=asyncio.FIRST_COMPLETED)
                ended.cancel()
            finally:
                app.closing = True
                server.should_exit = True
                await self._close(fleet, proxy)
                server.force_exit = self._hurry.is_set()
                await serving

    def _start_all(self, fleet: Fleet) -> None:
        # Those beyond capacity would push the first ones out again.
        for model in itertools.islice(self._registry, self._settings.capacity):
            with contextlib.suppress(StartFailedError):
                fleet.begin_start(model)

    async def _close(self, fleet: Fleet, proxy: Proxy) -> None:
        """Requests get a while to finish, then engines get a while to end."""
        fleet.refuse()
        deadline = asyncio.get_running_loop().time() + self._settings.drain
        while proxy.in_flight and not self._hurry.is_set():
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                break
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), min(left, 0.1))
        proxy.abort_all()
        closing = asyncio.create_task(fleet.close())
        hurried = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({closing, hurried}, return_when=asyncio.FIRST_COMPLETED)
        if not closing.done():
            await fleet.kill()
        hurried.cancel()
        await closing


def client_session(read_timeout: float) -> aiohttp.ClientSession:
    """The one HTTP client of the data path: no limits, no cookies, nothing decoded."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=UPSTREAM_KEEP_ALIVE),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=read_timeout),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )


async def started(server: uvicorn.Server, serving: asyncio.Task[None]) -> None:
    """Until the server takes requests, or failed to."""
    while not server.started and not serving.done():
        await asyncio.sleep(0.005)
    if serving.done():
        serving.result()


def run_until_signalled(router_main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(router_main())
    else:
        uvloop.run(router_main())


def handle_signals(on_signal: Callable[[signal.Signals], None]) -> None:
    """Call `on_signal` in the running loop for Ctrl-C, SIGTERM and a closed terminal."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue  # nohup: meant to outlive its terminal
        loop.add_signal_handler(number, on_signal, number)
