"""Runs one engine and makes sure that nothing of it outlives the router.

A script of its own (`python -I -S guard.py ...`), because nobody else can do this job: when the
router is killed outright it cannot stop its children, a parent-death signal reaches only the
direct child, and engines such as vLLM are trees of processes that stay behind as orphans.

The guard is the leader of a session of its own and the reaper of every orphan below it
(PR_SET_CHILD_SUBREAPER), so no descendant gets out of its sight, whatever group or session it
moves to. Its standard input is a pipe held by the router:

    a number and a newline  stop: SIGTERM to the engine, so many seconds of grace, then SIGKILL
    end of file             the router is gone: stop with the default grace, remove the directory

When the engine's main process has ended it writes that exit status (128 + n for signal n) and a
newline to its standard output, and ends itself, with the same status, when the last descendant
has. The engine's output goes to the guard's standard error. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

STRAGGLER_SECONDS = 3.0
"""For what remains after the engine's main process has ended, to end by itself."""

CLEANER_SECONDS = 2.0
"""For processes that ignore SIGTERM because they clean up after the others."""


class Guard:
    """One engine's process tree."""

    def __init__(self, argv: list[str], grace: float, orphan_directory: Path | None) -> None:
        self._grace = grace
        self._orphan_directory = orphan_directory
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._wake, wake_write = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._asked_to_stop = False
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_stop_signal)
        self._status: int | None = None
        self._orphaned = False
        self._stdin_open = True
        # Held so that its destructor does not reap behind our back.
        self._child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            preexec_fn=self._before_exec,
        )
        self._pid = self._child.pid

    def _before_exec(self) -> None:
        """In the engine, before exec: a process group of its own; dies if the guard is killed."""
        os.setpgid(0, 0)
        self._libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)

    def _on_stop_signal(self, *_: object) -> None:
        self._asked_to_stop = True

    def run(self) -> int:
        """Until nothing is left; the exit status for the guard."""
        deadline: float | None = None
        while self._reap() and self._status is None:
            grace = self._wait(deadline)
            if self._asked_to_stop and grace is None:
                grace = self._grace
            self._asked_to_stop = False
            if grace is not None:
                self._kill(self._pid, signal.SIGTERM)
                asked = time.monotonic() + grace
                deadline = asked if deadline is None else min(deadline, asked)
            if deadline is not None and time.monotonic() >= deadline:
                self._kill(self._pid, signal.SIGKILL)
                break
        self._end_stragglers()
        if not self._orphaned and self._stdin_open:
            self._wait(time.monotonic())  # the router may have died in the meantime
        if self._orphaned and self._orphan_directory is not None:
            shutil.rmtree(self._orphan_directory, ignore_errors=True)
            with contextlib.suppress(OSError):
                self._orphan_directory.parent.rmdir()  # fails while others are in it
        return self._status if self._status is not None else 1

    def _wait(self, deadline: float | None) -> float | None:
        """Sleep until something happens; the grace in seconds when asked to stop."""
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        files = [self._wake, *([0] if self._stdin_open else [])]
        ready, _, _ = select.select(files, [], [], timeout)
        if self._wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
        if 0 not in ready:
            return None
        command = os.read(0, 4096)
        if not command:
            self._stdin_open = False
            self._orphaned = True
            return self._grace
        try:
            return max(0.0, float(command.split()[-1]))
        except (ValueError, IndexError):
            return self._grace

    def _reap(self) -> bool:
        """Collect every ended child; False when there is none left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._pid:
                code = os.waitstatus_to_exitcode(status)
                self._status = code if code >= 0 else 128 - code
                self._child.returncode = self._status
                with contextlib.suppress(OSError):  # nobody may be listening any more
                    os.write(1, f"{self._status}\n".encode())

    def _end_stragglers(self) -> None:
        """The main process is gone or about to be: end the rest, politely first.

        Those that clean up go last: Python's resource tracker ignores SIGTERM and unlinks shared
        memory once all who used it are gone; killed with them it would leave their segments.
        """
        for pid in self._children():
            self._kill(pid, signal.SIGTERM)
        self._wait_for_the_end(STRAGGLER_SECONDS, kill=None)
        self._wait_for_the_end(CLEANER_SECONDS, kill=heeds_sigterm)
        self._wait_for_the_end(math.inf, kill=lambda pid: True)

    def _wait_for_the_end(self, seconds: float, kill: Callable[[int], bool] | None) -> None:
        """Until no child is left or the time is up, killing those that `kill` is true for.

        Orphans become our children as their parents die, so this reaches every generation.
        """
        deadline = time.monotonic() + seconds
        while self._reap() and time.monotonic() < deadline:
            for pid in self._children() if kill else ():
                if kill is not None and kill(pid):
                    self._kill(pid, signal.SIGKILL)
            self._wait(min(deadline, time.monotonic() + 0.05) if kill else deadline)

    @staticmethod
    def _kill(pid: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)

    @staticmethod
    def _children() -> Iterator[int]:
        own = os.getpid()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and parent_of(entry) == own:
                yield int(entry.name)


def parent_of(process: Path) -> int | None:
    """The parent's pid of a ``/proc/<pid>`` directory; None when the process has gone."""
    try:
        stat = (process / "stat").read_text()
    except OSError:
        return None
    # The command name, in parentheses, may hold anything.
    return int(stat.rpartition(")")[2].split()[1])


def heeds_sigterm(pid: int) -> bool:
    """Whether a process does not ignore SIGTERM (also true when it has gone)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    _, _, ignored = status.partition("SigIgn:")
    return not int(ignored.split()[0], 16) & 1 << (signal.SIGTERM - 1)


def main() -> int:
    """Parse the command line and guard."""
    parser = argparse.ArgumentParser(description="guards one engine process tree")
    parser.add_argument("--grace", type=float, required=True)
    parser.add_argument("--orphan-directory", type=Path)
    parser.add_argument("argv", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    argv = options.argv[1:] if options.argv[:1] == ["--"] else options.argv
    try:
        guard = Guard(argv, options.grace, options.orphan_directory)
    except OSError as error:
        print(f"cannot run {argv[0]}: {error}", file=sys.stderr)
        return 127
    return guard.run()


if __name__ == "__main__":
    sys.exit(main())
