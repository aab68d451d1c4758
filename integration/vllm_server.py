"""`vllm serve`, started as the router would start it, for tests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vllm_process import DEADLINE, end_group, no_shared_memory_left

from sllm.interfaces import LaunchRequest
from sllm_vllm.engine import VllmEngine


def free_port() -> int:
    """A port nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One `vllm serve` process group."""

    def __init__(self, model: Path, log: Path, options: Mapping[str, str], **env: str) -> None:
        self.port = free_port()
        self._log = log
        request = LaunchRequest("served", model, "127.0.0.1", self.port, options)
        launch = VllmEngine().launch(request)
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                launch.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", **launch.env, **env},
            )
        self._ready_path = launch.ready_path

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def output(self) -> str:
        """Everything printed so far by all its processes."""
        return self._log.read_text(errors="replace")

    def wait_ready(self) -> None:
        """Until it answers; fails the test when it ends or takes too long."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(self.url(self._ready_path), timeout=5):
                return
            with suppress(subprocess.TimeoutExpired):
                code = self.process.wait(0.2)
                raise AssertionError(f"vLLM ended with {code}\n{self.output()[-4000:]}")
        raise AssertionError(f"vLLM did not get ready\n{self.output()[-4000:]}")

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """POST JSON, get JSON."""
        request = urllib.request.Request(
            self.url(path), json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
            return json.load(answer)


@contextmanager
def serving(model: Path, log: Path, options: Mapping[str, str], **env: str) -> Iterator[Server]:
    """A server, and nothing of it left afterwards."""
    # vLLM leaves sockets in the folder for temporary files.
    scratch = tempfile.TemporaryDirectory(prefix="sllm-")
    with scratch as folder, no_shared_memory_left():
        server = Server(model, log, options, TMPDIR=folder, **env)
        try:
            yield server
        finally:
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(server.process.pid, signal.SIGTERM)
                server.process.wait(20)
            end_group(server.process)
