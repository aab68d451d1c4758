"""Runs `sllm serve` as a person would, and looks at what it leaves behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

MAIN = Path(__file__).with_name("router_main.py")
PATIENCE = 300.0
"""Seconds before a test gives up waiting; generous, because machines are busy."""


def write_model(directory: Path, **knobs: Any) -> Path:
    """A minimal safetensors model, with knobs for the scripted engine."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text('{"model_type": "scripted"}')
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(8)
    (directory / "model.safetensors").write_bytes(data)
    (directory / "knobs.json").write_text(json.dumps(knobs))
    return directory


def events(model: Path) -> list[str]:
    """What the model's engine processes recorded so far."""
    with contextlib.suppress(FileNotFoundError):
        return (model / "events.log").read_text().splitlines()
    return []


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Wait until the condition holds; its value."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"gave up waiting: {what}")
        time.sleep(0.01)
    return value


def processes_with(variable: str, sessions: set[int]) -> dict[int, str]:
    """Command lines, by pid, of processes that inherited ``NAME=value`` or belong to a session.

    Either alone may miss one: a process can start a session of its own, and one that changes its
    title (vLLM's do) overwrites what /proc shows as its environment.
    """
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                marked = variable.encode() in (entry / "environ").read_bytes().split(b"\0")
                if marked or os.getsid(int(entry.name)) in sessions:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                    state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                    if state != "Z":
                        found[int(entry.name)] = command.decode(errors="replace")
    return found


class Answer:
    """A complete HTTP answer."""

    def __init__(self, response: http.client.HTTPResponse, body: bytes) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Serving:
    """A running `sllm serve`."""

    _started: ClassVar[list[Serving]] = []

    def __init__(
        self,
        *arguments: str | Path,
        scratch: Path,
        engine: str = "scripted",
        log_to: int = subprocess.PIPE,
        wrapper: tuple[str, ...] = (),
    ) -> None:
        self.scratch = scratch
        scratch.mkdir(parents=True, exist_ok=True)
        # Everything below the router inherits the mark: nothing can hide from the tests.
        self.mark = f"SLLM_TEST_MARK={os.getpid()}-{time.monotonic_ns()}"
        name, _, value = self.mark.partition("=")
        command = [sys.executable, str(MAIN), "serve", "--port", "0", "--engine", engine]
        self.process = subprocess.Popen(
            [*wrapper, *command, *map(str, arguments)],
            env={**os.environ, name: value, "TMPDIR": str(scratch)},
            stdout=subprocess.PIPE,
            stderr=log_to,
            text=True,
            start_new_session=True,
        )
        self._log: list[str] = []
        self._printed: list[str] = []
        self._readers = [
            threading.Thread(target=self._collect, args=pair, daemon=True)
            for pair in ((self.process.stdout, self._printed), (self.process.stderr, self._log))
            if pair[0] is not None
        ]
        Serving._started.append(self)
        for reader in self._readers:
            reader.start()
        self.port = self._wait_ready()

    @staticmethod
    def _collect(stream: Any, lines: list[str]) -> None:
        with stream:
            lines.extend(iter(stream.readline, ""))

    def _wait_ready(self) -> int:
        def ready() -> str | None:
            if self.process.poll() is not None:
                raise AssertionError(f"sllm serve ended: {self.log}")
            return next((line for line in list(self._printed) if "ready on" in line), None)

        return int(eventually(ready, "sllm serve to be ready").rpartition(":")[2])

    @property
    def log(self) -> str:
        return "".join(self._log)

    @property
    def printed(self) -> str:
        return "".join(self._printed)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One request, one complete answer."""
        data = body
        if isinstance(body, dict):
            data = json.dumps(body).encode()
            headers = {"Content-Type": "application/json", **(headers or {})}
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, data, headers or {})
            response = connection.getresponse()
            return Answer(response, response.read())

    def complete(self, model: str, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
        """POST /v1/completions."""
        body = {"model": model, "prompt": "Hi", **fields}
        return self.ask("POST", "/v1/completions", body, headers)

    def metric(self, line: str) -> float | None:
        """The value of one sample of /metrics, given as ``name{labels}``."""
        text = self.ask("GET", "/metrics").body.decode()
        values = [row.rpartition(" ")[2] for row in text.splitlines() if row.startswith(line + " ")]
        return float(values[0]) if values else None

    def left_over(self) -> dict[int, str]:
        """Processes of this router that are still there, itself left out."""
        sessions = {int(number) for number in re.findall(r"\(session (\d+)\)", self.log)}
        found = processes_with(self.mark, sessions)
        return {pid: command for pid, command in found.items() if pid != self.process.pid}

    def shared_memory(self) -> set[Path]:
        """The shared-memory files that its engines have mapped."""
        found = set()
        for pid in self.left_over():
            with contextlib.suppress(OSError):
                rows = Path(f"/proc/{pid}/maps").read_text().splitlines()
                found |= {Path(row.split(None, 5)[5]) for row in rows if "/dev/shm/" in row}
        return found

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Signal it and wait for its end; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        return status

    @classmethod
    def end_all(cls) -> None:
        """For the end of a test that may have failed half-way."""
        while cls._started:
            router = cls._started.pop()
            if router.process.poll() is None:
                router.process.kill()
                eventually(lambda router=router: not router.left_over(), "its engines to end")


@contextlib.contextmanager
def serving(*arguments: str | Path, scratch: Path, engine: str = "scripted") -> Iterator[Serving]:
    """As `Serving`, ended at the end."""
    router = Serving(*arguments, scratch=scratch, engine=engine)
    try:
        yield router
    finally:
        router.end()
        if router.left_over():
            raise AssertionError(f"left running: {router.left_over()}")
