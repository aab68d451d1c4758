"""A small HTTP engine for the router's tests: OpenAI's shape, and misbehaviour on request.

Run as a script. `knobs.json` in the model directory says how it starts, the field `script` of a
request says what that request does. What happened is appended to `events.log` there.
"""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

STUBBORN_CHILD = """
import os, signal, time
os.setsid()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    time.sleep(60)
"""


# It catches SIGTERM and goes on, with its end of a pipe open.
DEAF_WORKER = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: None)
while True:
    time.sleep(60)
"""

# Like Python's resource tracker: ignores SIGTERM, cleans up when the others have gone.
CLEANER = """
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.stdin.read()
with open(sys.argv[1], "a") as file:
    file.write("cleaned\\n")
"""


class Server(ThreadingHTTPServer):
    request_queue_size = 256  # the default of 5 makes fifty clients wait for SYN retransmissions


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    directory: Path
    model: str

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        well = self.path == "/health" and not (self.directory / "ill").exists()
        self.answer(200 if well else 503, b"{}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        request = json.loads(body)
        script: dict[str, Any] = request.get("script", {})
        record(self.directory, "request")
        if script.get("fall_ill"):
            (self.directory / "ill").touch()
        if script.get("die") and not (
            script["die"] == "once" and Path(self.directory / "died").exists()
        ):
            (self.directory / "died").touch()
            os._exit(9)
        if "status" in script:
            self.answer(script["status"], script["body"].encode())
        elif script.get("echo"):
            self.echo(body)
        elif "size" in script:
            self.answer(200, b"x" * script["size"], {"content-type": "text/plain"})
        elif request.get("stream"):
            self.stream(script)
        elif script.get("hang"):
            self.wait_for_disconnect()
        else:
            self.answer(200, json.dumps(completion(self.model)).encode())

    def echo(self, body: bytes) -> None:
        value = {
            "path": self.path,
            "headers": [[name.lower(), value] for name, value in self.headers.items()],
            "body": base64.b64encode(body).decode(),
        }
        self.answer(200, json.dumps(value).encode(), {"x-engine": "scripted"})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, script: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("content-type", script.get("content_type", "text/event-stream"))
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        chunks = [base64.b64decode(chunk) for chunk in script.get("chunks", [])]
        for chunk in chunks or default_events(self.model):
            self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            self.wfile.flush()
        if script.get("die_at_end"):
            os._exit(9)
        if script.get("hang"):
            self.wait_for_disconnect()
            return
        self.wfile.write(b"0\r\n\r\n")

    def wait_for_disconnect(self) -> None:
        record(self.directory, "hanging")
        select.select([self.connection], [], [])
        record(self.directory, "aborted" if not self.connection.recv(1) else "unexpected bytes")
        self.close_connection = True


def completion(model: str) -> dict[str, Any]:
    choice = {"index": 0, "text": "Hello world", "finish_reason": "stop", "logprobs": None}
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": model,
            "choices": [choice]}  # fmt: skip


def default_events(model: str) -> list[bytes]:
    events = []
    for text in ("Hel", "lo ", "wörld"):
        choice = {"index": 0, "text": text, "finish_reason": None, "logprobs": None}
        value = {**completion(model), "choices": [choice]}
        events.append(b"data: " + json.dumps(value).encode() + b"\n\n")
    return [*events, b"data: [DONE]\n\n"]


def record(directory: Path, event: str) -> None:
    with (directory / "events.log").open("a") as file:
        file.write(f"{event}\n")


def main() -> None:
    directory, model, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    knobs = json.loads((directory / "knobs.json").read_text())
    record(directory, "start")
    (directory / "ill").unlink(missing_ok=True)
    if records := knobs.get("load_records"):
        Path(os.environ["SLLM_RECORDS"]).write_text(records)
    if knobs.get("ignore_sigterm"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if knobs.get("stubborn_child"):
        # A child that left the group and the session and ignores SIGTERM.
        child = subprocess.Popen([sys.executable, "-S", "-c", STUBBORN_CHILD])
        record(directory, f"child {child.pid}")
    if knobs.get("cleaner"):
        reading, writing = os.pipe()
        subprocess.Popen([sys.executable, "-S", "-c", DEAF_WORKER], pass_fds=[writing])
        log = str(directory / "events.log")
        subprocess.Popen([sys.executable, "-S", "-c", CLEANER, log], stdin=reading)
        os.close(writing)
        os.close(reading)
    if "gate" in knobs:
        while not (directory / knobs["gate"]).exists():
            time.sleep(0.01)
    if "die_at_start" in knobs:
        sys.exit(knobs["die_at_start"])
    Handler.directory, Handler.model = directory, model
    server = Server(("127.0.0.1", port), Handler)
    server.serve_forever()


if __name__ == "__main__":
    main()
