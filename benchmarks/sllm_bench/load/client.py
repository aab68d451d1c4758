"""The parent's end of a worker."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from types import TracebackType
from typing import Any

from sllm_bench.load.contenders.base import Setup
from sllm_bench.load.errors import WorkerError

_TAIL = 2000
_GRACE_SECONDS = 10.0


class Worker:
    """A process that holds one contender. Use as a context manager: leaving it ends the process.

    Args:
        spec: the contender's `module:Class`.
        setup: what it is told.
        timeout: seconds that any one request may take.
    """

    def __init__(self, spec: str, setup: Setup, timeout: float) -> None:
        self.spec = spec
        self._timeout = timeout
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        self._pending = b""
        task = {
            "contender": spec,
            "model": setup.model.as_dict(),
            "scratch": str(setup.scratch),
            "device": setup.device,
            "methods": list(setup.methods),
            "parent": os.getpid(),
        }
        # A session of its own, so that the whole group can be ended, and so that the terminal's
        # Ctrl-C reaches the parent alone.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sllm_bench.load.worker", json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Of the process; also its process group's id."""
        return self._process.pid

    def request(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Ask for something and wait for the answer.

        Raises:
            WorkerError: the contender failed, died or took too long.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure("died") from None
        reply: dict[str, Any] = json.loads(self._line())
        if "error" in reply:
            raise WorkerError(f"{self.spec}: {reply['error']}")
        return reply

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + self._timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self._failure(f"gave no answer within {self._timeout:g} s")
                part = os.read(self._process.stdout.fileno(), 1 << 20)
                if not part:
                    raise self._failure("died")
                self._pending += part
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _failure(self, what: str) -> WorkerError:
        self.kill()
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - _TAIL))
        tail = self._log.read().decode(errors="replace").strip()
        code = self._process.returncode
        return WorkerError(f"{self.spec}: worker {what} (exit code {code})\n{tail}")

    def kill(self) -> None:
        """End the process and everything it started, at once. May be called again."""
        if self._process.poll() is None:  # once reaped, its number may be somebody else's
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Let it end by itself (its input ends), then make sure."""
        if self._process.poll() is None:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_SECONDS)
        self._end()

    def _end(self) -> None:
        self.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._end()
