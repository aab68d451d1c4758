"""However the router ends, nothing of it is left."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from router_harness import MAIN, Serving, events, eventually, write_model


@pytest.fixture(autouse=True)
def no_router_survives_its_test() -> Iterator[None]:
    yield
    Serving.end_all()


def start(tmp_path: Path, *arguments: str | Path) -> Serving:
    return Serving(*arguments, scratch=tmp_path / "scratch")


def nothing_left(router: Serving, tmp_path: Path) -> bool:
    return not router.left_over() and not any((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    models = [write_model(tmp_path / name) for name in ("a", "b")]
    router = start(tmp_path, *models)
    for name in ("a", "b"):
        assert router.complete(name).status == 200
    assert len(router.left_over()) == 4
    assert router.end(number) == 0
    assert nothing_left(router, tmp_path)
    assert number.name in router.log
    assert "nothing is left running" in router.log


def test_without_the_optional_speedups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pip install uvicorn` brings neither; the standard library's loop and h11 must do."""
    monkeypatch.setenv("WITHOUT", "uvloop,httptools")
    model = write_model(tmp_path / "m", stubborn_child=True)
    router = start(tmp_path, model)
    assert router.complete("m").status == 200
    assert router.complete("m", stream=True).body.endswith(b"data: [DONE]\n\n")
    connection = router.connect()
    body = {"model": "m", "stream": True, "script": {"hang": True}}
    connection.request("POST", "/v1/completions", json.dumps(body))
    eventually(lambda: "hanging" in events(model), "the engine to hang")
    connection.close()
    eventually(lambda: "aborted" in events(model), "the engine to see the client leave")
    assert router.end(signal.SIGINT) == 0
    assert nothing_left(router, tmp_path)


def test_it_ends_although_nobody_listens_any_more(tmp_path: Path) -> None:
    """As when the terminal was closed: every write to it fails."""
    model = write_model(tmp_path / "m")
    deaf, pipe = os.pipe()
    router = Serving(model, scratch=tmp_path / "scratch", log_to=pipe)
    os.close(pipe)
    assert router.complete("m").status == 200
    os.close(deaf)
    assert router.end(signal.SIGHUP) == 0
    assert nothing_left(router, tmp_path)


def test_nohup_is_respected(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    router = Serving(model, scratch=tmp_path / "scratch", wrapper=("nohup",))
    router.process.send_signal(signal.SIGHUP)
    assert router.complete("m").status == 200
    assert router.end(signal.SIGTERM) == 0
    assert "SIGHUP" not in router.log
    assert nothing_left(router, tmp_path)


def test_kill_9_of_the_router_takes_its_engines_along(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", stubborn_child=True, ignore_sigterm=True)
    router = start(tmp_path, model, "--stop-grace", "0.2")
    assert router.complete("m").status == 200
    assert len(router.left_over()) == 3
    router.end(signal.SIGKILL)
    eventually(lambda: nothing_left(router, tmp_path), "the guard to clean up")


def test_kill_9_while_an_engine_starts(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", gate="never")
    router = start(tmp_path, model)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(router.complete, "m")
        eventually(lambda: events(model) == ["start"], "the engine to start")
        router.end(signal.SIGKILL)
        assert isinstance(asked.exception(), (OSError, http.client.HTTPException))
    eventually(lambda: nothing_left(router, tmp_path), "the guard to clean up")


def test_kill_9_of_the_guard_takes_the_engine_along(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", stubborn_child=False)
    router = start(tmp_path, model)
    assert router.complete("m").status == 200
    (guard,) = [pid for pid, command in router.left_over().items() if "guard.py" in command]
    os.kill(guard, signal.SIGKILL)
    eventually(lambda: not router.left_over(), "the engine to be gone")
    assert router.complete("m").status == 200, "the next request starts another"
    assert router.end() == 0
    assert nothing_left(router, tmp_path)


def test_processes_that_left_their_group_are_ended(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", stubborn_child=True)
    router = start(tmp_path, model)
    assert router.complete("m").status == 200
    assert len(router.left_over()) == 3
    assert router.end() == 0
    assert nothing_left(router, tmp_path)


def test_who_cleans_up_after_the_others_is_ended_last(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", cleaner=True)
    router = start(tmp_path, model)
    assert router.complete("m").status == 200
    assert len(router.left_over()) == 4
    assert router.end() == 0
    assert nothing_left(router, tmp_path)
    assert events(model)[-1] == "cleaned"


def test_an_engine_killed_from_outside_leaves_no_children(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", stubborn_child=True)
    router = start(tmp_path, model)
    assert router.complete("m").status == 200
    processes = router.left_over().items()
    (engine,) = [p for p, c in processes if "router_engine.py" in c and "guard.py" not in c]
    os.kill(engine, signal.SIGKILL)
    eventually(lambda: not router.left_over(), "the orphan to be ended")
    assert "died (signal SIGKILL)" in router.log
    router.end()
    assert nothing_left(router, tmp_path)


def test_ending_while_an_engine_starts(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", gate="never")
    router = start(tmp_path, model)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(router.complete, "m")
        eventually(lambda: events(model) == ["start"], "the engine to start")
        assert router.end() == 0
        answer = asked.result()
    assert answer.status == 503
    assert "shutting down" in answer.json["error"]["message"]
    assert nothing_left(router, tmp_path)


def test_running_streams_are_told(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    router = start(tmp_path, model, "--drain", "0.1")
    with contextlib.closing(router.connect()) as connection:
        body = {"model": "m", "stream": True, "script": {"hang": True}}
        connection.request("POST", "/v1/completions", json.dumps(body))
        response = connection.getresponse()
        assert response.readline().startswith(b"data:")
        router.process.send_signal(signal.SIGTERM)
        last = response.read().strip().rpartition(b"\n\n")[2]
    assert "shutting down" in json.loads(last.removeprefix(b"data: "))["error"]["message"]
    assert router.end() == 0
    assert nothing_left(router, tmp_path)


def test_a_client_that_does_not_read_cannot_hold_it(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    router = start(tmp_path, model, "--drain", "0")
    with contextlib.closing(router.connect()) as connection:
        body = json.dumps({"model": "m", "script": {"size": 64 << 20}})
        connection.request("POST", "/v1/completions", body)
        assert connection.getresponse().read(1) == b"x"
        assert router.end() == 0
    assert nothing_left(router, tmp_path)


def test_a_second_signal_hurries(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", ignore_sigterm=True)
    router = start(tmp_path, model, "--drain", "10000", "--stop-grace", "10000")
    with contextlib.closing(router.connect()) as connection:
        body = {"model": "m", "stream": True, "script": {"hang": True}}
        connection.request("POST", "/v1/completions", json.dumps(body))
        assert connection.getresponse().readline().startswith(b"data:")
        router.process.send_signal(signal.SIGINT)
        eventually(lambda: "once more to hurry" in router.log, "the first to be noticed")
        assert router.end() == 0
    assert nothing_left(router, tmp_path)


def test_log_dir_is_kept(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", die_at_start="a last word")
    router = start(tmp_path, model, "--log-dir", tmp_path / "logs")
    assert router.complete("m").status == 503
    assert router.end() == 0
    (log,) = (tmp_path / "logs").glob("m-*-1.log")
    assert log.read_text() == "a last word\n"
    assert nothing_left(router, tmp_path)


def run(tmp_path: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(MAIN), "serve", "--engine", "scripted", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_what_cannot_be_served_is_said_before_anything_starts(tmp_path: Path) -> None:
    good = write_model(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    cut = write_model(tmp_path / "cut")
    (cut / "model.safetensors").write_bytes(b"\x01")
    cases: list[tuple[list[str | Path], str]] = [
        ([tmp_path / "nowhere"], "no such file"),
        ([tmp_path / "empty"], "no config.json"),
        ([good / "config.json"], "not a directory"),
        ([cut], "model.safetensors"),
        ([good, f"other={good}", f"good={good}"], "two models are called 'good'"),
        ([good, "--engine", "nonesuch"], "scripted"),
        ([good, "--engine", "broken"], "its library is not installed"),
        ([good, "--policy", "nonesuch"], "startup-time"),
        ([good, "-o", "color"], "name=value"),
        ([good, "-o", "colour=red"], "no option 'colour'"),
        ([good, "--host", "203.0.113.7"], "cannot listen on 203.0.113.7"),
        (["nonesuch://model"], "nonesuch"),
    ]
    for arguments, expected in cases:
        ended = run(tmp_path, *arguments)
        assert ended.returncode in (1, 2), (arguments, ended.stdout, ended.stderr)
        assert expected in ended.stderr, (arguments, ended.stderr)
        assert "Traceback" not in ended.stderr
    assert events(good) == []


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WITHOUT", "aiohttp,uvicorn")
    ended = run(tmp_path, write_model(tmp_path / "m"))
    assert ended.returncode == 1
    assert "not installed: aiohttp, uvicorn - pip install 'sllm[router]'" in ended.stderr


def test_api_key(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    router = start(tmp_path, f"n={model}", "--api-key", "secret", "--json-logs")
    try:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            answer = router.complete("n", headers=headers)
            assert answer.status == 401
            assert answer.json["error"]["code"] == "invalid_api_key"
        answer = router.complete(
            "n", headers={"Authorization": "Bearer secret"}, script={"echo": True}
        )
        assert answer.status == 200
        assert "authorization" not in {name for name, _ in answer.json["headers"]}
        assert router.ask("GET", "/v1/models").status == 401
        assert router.ask("GET", "/health").status == 200
    finally:
        router.end()
    messages = [json.loads(line) for line in router.log.splitlines() if line.startswith("{")]
    assert any("is ready" in message["message"] for message in messages)
    assert nothing_left(router, tmp_path)
