"""One contender in a process of its own: JSON lines in, JSON lines out.

Requests: ``{"op": "prepare"}``, ``{"op": "check", "variant": ...}`` and
``{"op": "sample", "variant": ...}``. Each gets one line back: the result, or ``{"error": ...}``.
The end of the input ends the process.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from sllm_bench.load import digest, host
from sllm_bench.load.contenders import contender_class
from sllm_bench.load.contenders.base import Contender, Setup
from sllm_bench.load.model import ModelFiles

_PR_SET_PDEATHSIG = 1


def _die_with_parent(parent: int) -> None:
    """Even when the parent is killed outright."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def _private_output() -> IO[str]:
    """Keep standard output for the protocol: what a loader prints goes to standard error."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def prepare(contender: Contender) -> dict[str, Any]:
    """Everything that must not be timed."""
    contender.prepare()
    touched = contender.first_touch
    return {
        "variants": {
            mode: [[v.key, v.label, v.limit] for v in contender.variants(mode)]
            for mode in ("cold", "warm")
        },
        "files": [str(path) for path in contender.files()],
        "versions": contender.versions(),
        "first_touch": None if touched is None else [touched.nbytes, touched.seconds],
    }


def check(contender: Contender, variant: str) -> dict[str, Any]:
    """Load once, not timed: what came out, and the loader's own lazy imports done with."""
    contender.before(variant)
    loaded = contender.load(variant)
    found = digest.of_tensors(contender.tensors(loaded))
    contender.release(loaded)
    return {"digest": found}


def sample(contender: Contender, variant: str) -> dict[str, Any]:
    """Load once and touch every page, timed."""
    contender.before(variant)
    gc.collect()
    gc.disable()
    before = resource.getrusage(resource.RUSAGE_SELF)
    begin = time.perf_counter()
    loaded = contender.load(variant)
    load_seconds = time.perf_counter() - begin
    tensors = contender.tensors(loaded)
    begin = time.perf_counter()
    host.touch(tensor.data for tensor in tensors.values())
    touch_seconds = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_SELF)
    gc.enable()
    del tensors
    result = {
        "load_seconds": load_seconds,
        "touch_seconds": touch_seconds,
        "user_seconds": after.ru_utime - before.ru_utime,
        "system_seconds": after.ru_stime - before.ru_stime,
        "minor_faults": after.ru_minflt - before.ru_minflt,
        "major_faults": after.ru_majflt - before.ru_majflt,
        "details": contender.details(),
    }
    contender.release(loaded)
    return result


def serve(contender: Contender, requests: IO[str], replies: IO[str]) -> None:
    """Answer requests until there are no more."""
    operations: Mapping[str, Callable[..., dict[str, Any]]] = {
        "prepare": lambda: prepare(contender),
        "check": lambda variant: check(contender, variant),
        "sample": lambda variant: sample(contender, variant),
    }
    for line in requests:
        request = json.loads(line)
        try:
            reply = operations[request.pop("op")](**request)
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        gc.collect()  # a mapping that lives on would keep its file in the page cache
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def main() -> None:
    """Arguments: one JSON object, see `sllm_bench.load.client.Worker`."""
    task = json.loads(sys.argv[1])
    _die_with_parent(task["parent"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    replies = _private_output()
    setup = Setup(
        model=ModelFiles.from_dict(task["model"]),
        scratch=Path(task["scratch"]),
        device=task["device"],
        methods=task["methods"],
    )
    serve(contender_class(task["contender"])(setup), sys.stdin, replies)


if __name__ == "__main__":
    main()
