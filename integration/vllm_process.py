"""Real vLLM processes for tests, ended for certain."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

WORKER = Path(__file__).with_name("vllm_worker.py")
SHARED_MEMORY = Path("/dev/shm")
DEADLINE = 300.0
"""Seconds after which something that should have come is taken for a hang."""


class RemoteError(Exception):
    """What a job raised in the worker.

    Attributes:
        kinds: names of the exception's classes, most special first.
    """

    def __init__(self, message: str, kinds: list[str]) -> None:
        super().__init__(message)
        self.kinds = kinds


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a process that leads its own group, and everything it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def mapped_by_anyone(path: Path) -> bool:
    """Whether a process that we may look at maps the file."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if str(path) in maps.read_text():
                return True
        except OSError:
            continue
    return False


@contextmanager
def no_shared_memory_left() -> Iterator[None]:
    """Remove what vLLM's tensor-parallel workers leave in shared memory: two files a run.

    Only files that appeared meanwhile and that no process maps any more: others may run vLLM too.
    """

    def present() -> set[Path]:
        return set(SHARED_MEMORY.glob("vllm_dist_*")) if SHARED_MEMORY.is_dir() else set()

    before = present()
    try:
        yield
    finally:
        for path in present() - before:
            if not mapped_by_anyone(path):
                path.unlink(missing_ok=True)


class VllmProcess:
    """One process with vLLM imported, which does jobs one after another (see `vllm_worker`)."""

    def __init__(self, log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._log = log
        self._scratch = tempfile.TemporaryDirectory(prefix="sllm-")
        results, theirs = os.pipe()
        self._results = os.fdopen(results)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(WORKER), str(theirs)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                pass_fds=[theirs],
                start_new_session=True,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    # vLLM leaves sockets in the folder for temporary files.
                    "TMPDIR": self._scratch.name,
                    **(environment or {}),
                },
            )
        os.close(theirs)

    def send(self, **job: Any) -> None:
        """Hand over a job."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def receive(self) -> Any:
        """The result of the oldest job not yet received.

        Raises:
            RemoteError: the job raised.
            AssertionError: the process died or gave no answer.
        """
        ready, _, _ = select.select([self._results], [], [], DEADLINE)
        line = self._results.readline() if ready else ""
        assert line, f"no answer from the vLLM process; its output ends\n{self.output()[-4000:]}"
        answer = json.loads(line)
        if "error" in answer:
            raise RemoteError(answer["error"], answer["kinds"])
        return answer["ok"]

    def ask(self, **job: Any) -> Any:
        """Have a job done."""
        self.send(**job)
        return self.receive()

    def output(self) -> str:
        """Everything it printed so far."""
        return self._log.read_text(errors="replace")

    def __enter__(self) -> VllmProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        end_group(self._process)
        self._results.close()
        self._scratch.cleanup()
