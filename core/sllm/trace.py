"""Marks in time across the processes of a start, for finding out where it goes.

With `SLLM_TRACE=FILE` each mark is one line of JSON: the event, the process, the wall-clock time
and how long that process has existed. Without it a mark costs one look at the environment.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

VARIABLE = "SLLM_TRACE"


def _age() -> float | None:
    """Seconds since this process was created; Linux only, to about 10 ms."""
    try:
        # The process's name, in brackets, may hold spaces: count fields after it.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, ValueError, AttributeError, IndexError):
        return None


def mark(event: str, **details: Any) -> None:
    """Note that `event` happened now in this process.

    Args:
        event: a name such as ``vllm-plugins``.
        details: anything JSON takes.
    """
    path = os.environ.get(VARIABLE)
    if path:
        line = {"event": event, "pid": os.getpid(), "time": time.time(), "age": _age(), **details}
        append_line(path, json.dumps(line))


def append_line(path: str, line: str) -> None:
    """Append to a file that several processes write: one write each, so lines do not mix."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)
