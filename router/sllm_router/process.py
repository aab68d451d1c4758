"""One engine process: started, watched, and ended with everything below it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp

from sllm.interfaces import Launch
from sllm_router import guard
from sllm_router.errors import StartError

POLL_SECONDS = (0.02, 0.25)
"""Readiness polls start close together, for engines that start fast, and grow apart."""

TAIL_BYTES = 16 << 10
TAIL_LINES = 20

PRIVATE_VARIABLES = ("SLLM_API_KEY",)
"""Not handed down to engines."""


class EngineProcess:
    """An engine under guard (see `guard`), with its log.

    Attributes:
        url: where it listens, without a trailing slash.
        log: everything it wrote.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, launch: Launch, url: str, log: Path
    ) -> None:
        self._process = process
        self._launch = launch
        self.url = url
        self.log = log
        self._main_ended = asyncio.create_task(self._read_status())
        self._all_ended = asyncio.create_task(self._reap())

    @classmethod
    async def spawn(
        cls, launch: Launch, *, url: str, directory: Path, log: Path, grace: float
    ) -> EngineProcess:
        """Start it; returns at once.

        Args:
            launch: what to run.
            url: where it will listen.
            directory: an existing directory of its own, removed when the router dies.
            log: what it writes is appended here.
            grace: seconds it gets to end by itself when the router dies.
        """
        command = [sys.executable, "-I", "-S", guard.__file__, "--grace", str(grace)]
        command += ["--orphan-directory", str(directory), "--", *launch.argv]
        environment = {
            name: value for name, value in os.environ.items() if name not in PRIVATE_VARIABLES
        }
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=output,
                env={**environment, **launch.env},
                start_new_session=True,
            )
        return cls(process, launch, url, log)

    @property
    def pid(self) -> int:
        """The guard's pid, which is also the session id of everything it runs."""
        return self._process.pid

    async def _reap(self) -> None:
        await self._process.wait()
        # Normally empty. Matters when the guard itself was killed.
        for pid in session_members(self.pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    async def _read_status(self) -> int:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        return int(line) if line else await self._process.wait()

    async def wait(self) -> int:
        """Until its main process has ended; the exit status, 128 + n for signal n."""
        return await asyncio.shield(self._main_ended)

    async def wait_ready(self, session: aiohttp.ClientSession, timeout: float) -> None:
        """Until it answers on its ready path.

        Raises:
            StartError: it ended, or `timeout` seconds went by.
        """
        ready = asyncio.create_task(self._poll(session))
        try:
            done, _ = await asyncio.wait(
                {ready, self._main_ended}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            ready.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ready
        if ready in done:
            return
        if self._main_ended in done:
            status = describe_status(self._main_ended.result())
            what = f"the engine ended with {status} before it was ready"
        else:
            what = f"the engine was not ready after {timeout:g} s (--start-timeout allows more)"
        raise StartError(f"{what}; its last lines:\n{self.log_tail()}")

    async def _poll(self, session: aiohttp.ClientSession) -> None:
        pause, longest = POLL_SECONDS
        timeout = aiohttp.ClientTimeout(total=5)
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, asyncio.TimeoutError):
                async with session.get(self.url + self._launch.ready_path, timeout=timeout) as r:
                    if r.status == 200:
                        return
            await asyncio.sleep(pause)
            pause = min(longest, pause * 1.5)

    async def is_broken(self, session: aiohttp.ClientSession) -> bool:
        """Whether it refuses to talk or says that it is ill. Slow is not broken."""
        timeout = aiohttp.ClientTimeout(total=5)
        try:
            async with session.get(self.url + self._launch.ready_path, timeout=timeout) as response:
                return response.status != 200
        except asyncio.TimeoutError:
            return False
        except aiohttp.ClientError:
            return True

    async def stop(self, grace: float) -> None:
        """SIGTERM, `grace` seconds, SIGKILL; returns when nothing of it is left.

        Can be called again with a shorter grace to hurry up.
        """
        if self._process.returncode is None and self._process.stdin is not None:
            with contextlib.suppress(ConnectionError, RuntimeError):
                self._process.stdin.write(f"{grace}\n".encode())
                await self._process.stdin.drain()
        backstop = grace + guard.STRAGGLER_SECONDS + guard.CLEANER_SECONDS + 5
        try:
            await asyncio.wait_for(asyncio.shield(self._all_ended), backstop)
        except asyncio.TimeoutError:
            # A guard that hangs (stopped by a signal, say): `_reap` ends the rest.
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._all_ended

    def log_tail(self) -> str:
        """The last lines it wrote."""
        return tail(self.log)


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """The last `lines` lines of a text file, undecodable bytes replaced; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.strip().splitlines()[-lines:])


def describe_status(status: int) -> str:
    """An exit status for people."""
    if status > 128:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(status - 128).name}"
    return f"exit status {status}"


def session_members(session: int) -> Iterator[int]:
    """Pids of every process in a session, zombies left out."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, _, _, sid = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(sid) == session and state != "Z":
            yield int(entry.name)


def free_port(host: str) -> int:
    """A TCP port that nobody listens on at the moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
