"""`sllm serve` as a child process, used as a person would use it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sllm.errors import EngineError

READY = re.compile(r"ready on (http://\S+)")
STOP_SECONDS = 60

# What `served` leaves in its folder.
TRACE, RECORDS, ROUTER_LOG, ENGINE_LOGS = "trace.jsonl", "records.jsonl", "router.log", "engines"


@dataclass(frozen=True, slots=True)
class Answer:
    """A streamed answer.

    Attributes:
        text: all of it.
        first_token: seconds from request to first text, the engine's start included.
        engine_start: seconds from starting the engine's process to ready.
    """

    text: str
    first_token: float
    engine_start: float


@contextmanager
def served(model: Path, options: Mapping[str, str], folder: Path) -> Iterator[str]:
    """Run `sllm serve` with vLLM; yields its URL. Logs, marks and records go to `folder`."""
    argv = [sys.executable, "-m", "sllm", "serve", f"demo={model}", "--engine", "vllm"]
    argv += ["--port", "0", "--log-dir", str(folder / ENGINE_LOGS)]
    for name, value in options.items():
        argv += ["-o", f"{name}={value}"]
    environment = {
        **os.environ,
        "SLLM_TRACE": str(folder / TRACE),
        "SLLM_RECORDS": str(folder / RECORDS),
        "PYTHONUNBUFFERED": "1",
    }
    with (folder / ROUTER_LOG).open("w") as log:
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
    try:
        yield _url(process, folder)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _url(process: subprocess.Popen[str], folder: Path) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if found := READY.search(line):
            return found[1]
    raise EngineError(f"`sllm serve` ended: {(folder / ROUTER_LOG).read_text()[-2000:]}")


def ask(url: str, question: str, tokens: int) -> Answer:
    """Send a streaming chat request, print the answer as it comes."""
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=900)
    messages: Any = [{"role": "user", "content": question}]
    started = time.monotonic()
    first: float | None = None
    text = ""
    stream = client.chat.completions.create(
        model="demo", messages=messages, stream=True, max_tokens=tokens, temperature=0
    )
    for chunk in stream:
        piece = chunk.choices[0].delta.content if chunk.choices else None
        if piece:
            first = time.monotonic() - started if first is None else first
            text += piece
            print(piece, end="", flush=True)
    print()
    if first is None:
        raise EngineError("the engine answered without any text")
    return Answer(text, first, _engine_start(url))


def _engine_start(url: str) -> float:
    from urllib.request import urlopen

    with urlopen(f"{url}/metrics") as response:
        for line in response.read().decode().splitlines():
            if line.startswith("sllm_engine_start_seconds_sum"):
                return float(line.rpartition(" ")[2])
    raise EngineError("the router's metrics do not tell how long the engine took to start")


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
