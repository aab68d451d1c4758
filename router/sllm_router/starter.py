"""Brings one instance up, and learns from how long it took."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

import aiohttp

from sllm.errors import SllmError
from sllm.interfaces import Launch, LaunchRequest
from sllm.loader.records import RECORDS_VARIABLE
from sllm_router.errors import StartError
from sllm_router.forecast import Forecast, read_records
from sllm_router.instances import Instance, State
from sllm_router.metrics import Metrics
from sllm_router.process import EngineProcess, free_port
from sllm_router.registry import Model
from sllm_router.settings import Settings

logger = logging.getLogger("sllm.router")

ENGINE_HOST = "127.0.0.1"
RECORDS_FILE = "loads.jsonl"


class Starter:
    """Starts and stops the processes behind instances."""

    def __init__(
        self,
        settings: Settings,
        forecast: Forecast,
        metrics: Metrics,
        session: aiohttp.ClientSession,
    ) -> None:
        self._settings = settings
        self._forecast = forecast
        self._metrics = metrics
        self._session = session
        self._root: Path | None = None
        self._ports: set[int] = set()

    def directory(self, number: int) -> Path:
        """A new directory for one instance's files."""
        if self._root is None:
            self._root = Path(tempfile.mkdtemp(prefix="sllm-"))
        directory = self._root / str(number)
        directory.mkdir()
        return directory

    def close(self) -> None:
        """Remove what is temporary. Everything must have been stopped."""
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
            self._root = None

    async def start(self, instance: Instance) -> None:
        """Spawn the process and wait until it is ready; the instance is then `READY`.

        Raises:
            StartError: it did not come up; nothing of it is left running.
        """
        model = instance.model
        expected = self._forecast.start(model)
        began = time.monotonic()
        port = self._reserve_port()
        try:
            launch = self._launch(model, port, instance.directory)
            instance.process = await EngineProcess.spawn(
                launch,
                url=f"http://{ENGINE_HOST}:{port}",
                directory=instance.directory,
                log=self._log(instance),
                grace=self._settings.stop_grace,
            )
            logger.info(
                "starting %s with %s on port %d (session %d), expected to take %.1f s",
                *(model.name, model.engine.name, port, instance.process.pid, expected.mean),
            )
            await instance.process.wait_ready(self._session, self._settings.start_timeout)
        except BaseException as error:
            result = "cancelled" if isinstance(error, asyncio.CancelledError) else "failed"
            self._metrics.starts.labels(model.name, model.engine.name, result).inc()
            await self.stop(instance)
            raise
        finally:
            self._ports.discard(port)
        instance.state = State.READY
        seconds = time.monotonic() - began
        self._learn(instance, seconds, expected.mean, expected.samples)

    def _reserve_port(self) -> int:
        """A free port that no other start of ours has been given."""
        while True:
            port = free_port(ENGINE_HOST)
            if port not in self._ports:
                self._ports.add(port)
                return port

    def _launch(self, model: Model, port: int, directory: Path) -> Launch:
        request = LaunchRequest(model.name, model.path, ENGINE_HOST, port, model.options)
        try:
            launch = model.engine.launch(request)
        except SllmError as error:
            raise StartError(str(error)) from error
        own = {RECORDS_VARIABLE: str(directory / RECORDS_FILE)}
        return Launch(
            launch.argv, {**temporary_places(directory), **launch.env, **own}, launch.ready_path
        )

    def _log(self, instance: Instance) -> Path:
        kept = self._settings.log_directory
        if kept is None:
            return instance.directory / "engine.log"
        stamp = time.strftime("%Y%m%d-%H%M%S")
        return kept / f"{safe_name(instance.model.name)}-{stamp}-{instance.id}.log"

    def _learn(self, instance: Instance, seconds: float, expected: float, samples: int) -> None:
        model = instance.model
        engine = model.engine.name
        self._metrics.starts.labels(model.name, engine, "ready").inc()
        self._metrics.start_seconds.labels(model.name, engine).observe(seconds)
        self._metrics.predicted_and_actual("start", model.name, expected, samples, seconds)
        self._forecast.started(model, seconds)
        logger.info(
            "%s is ready on %s after %.1f s (expected %.1f s)",
            *(model.name, instance.url, seconds, expected),
        )
        self._learn_loads(instance)

    def _learn_loads(self, instance: Instance) -> None:
        """Take over the load records that the engine's processes wrote."""
        model = instance.model.name
        path = instance.directory / RECORDS_FILE
        for record in read_records(path):
            expected = self._forecast.load(record)
            if expected is not None:
                self._metrics.predicted_and_actual(
                    "load", model, expected.mean, expected.samples, record["seconds"]
                )
            self._forecast.loaded(record)
            self._metrics.load_seconds.labels(model, record["tier"]).observe(record["seconds"])
            self._metrics.load_bytes.labels(model, record["tier"]).inc(record["nbytes"])
        self._hand_on_records(path)

    @staticmethod
    def _hand_on_records(path: Path) -> None:
        """Somebody who asked for load records in a file of their own gets them too."""
        wanted = os.environ.get(RECORDS_VARIABLE)
        if wanted and path.exists():
            with contextlib.suppress(OSError), Path(wanted).open("ab") as file:
                file.write(path.read_bytes())

    async def is_broken(self, instance: Instance) -> bool:
        """Whether the engine refuses to talk or says that it is ill."""
        return instance.process is None or await instance.process.is_broken(self._session)

    async def stop(self, instance: Instance, grace: float | None = None) -> None:
        """End the instance's process, if any, and remove its files (kept logs lie elsewhere)."""
        instance.state = State.STOPPING
        if instance.process is not None:
            await instance.process.stop(self._settings.stop_grace if grace is None else grace)
        shutil.rmtree(instance.directory, ignore_errors=True)


SOCKET_PATH_LIMIT = 107
"""Bytes in the path of a Unix socket (sun_path, with its end marker)."""

LONGEST_SOCKET_NAME = 48
"""What engines add to the temporary directory for their sockets, with something to spare."""


def temporary_places(directory: Path) -> dict[str, str]:
    """Variables that move an engine's temporary files to where they get removed with it.

    vLLM leaves its sockets behind in the temporary directory even when it ends in good order.
    Empty when the path would be too long for a Unix socket.
    """
    if len(os.fsencode(directory)) + LONGEST_SOCKET_NAME > SOCKET_PATH_LIMIT:
        return {}
    places = {"TMPDIR": str(directory)}
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        # A cache that PyTorch keeps in the temporary directory; starts get slower without it.
        with contextlib.suppress(KeyError, OSError):  # a user id without a name
            cache = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
            places["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    return places


def safe_name(name: str) -> str:
    """A model name as part of a file name."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:64]
