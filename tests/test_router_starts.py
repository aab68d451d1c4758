"""When engines start, how often, what happens when they do not, and who makes room."""

from __future__ import annotations

import contextlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from router_harness import events, eventually, serving, write_model

from sllm.loader.base import FileRecord, LoadRecord

COLD = 'sllm_cold_requests_total{model="m"}'


def test_fifty_requests_one_start(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", gate="open")
    with serving(model, scratch=tmp_path / "scratch") as router, ThreadPoolExecutor(50) as pool:
        answers = [pool.submit(router.complete, "m") for _ in range(50)]
        eventually(lambda: router.metric(COLD) == 50, "all requests to wait")
        assert router.ask("GET", "/health").json["models"] == {"m": "starting"}
        (model / "open").touch()
        assert [answer.result().status for answer in answers] == [200] * 50
        assert events(model).count("start") == 1
        assert router.metric('sllm_engine_starts_total{engine="scripted",model="m",result="ready"}')


def test_failed_start_tells_everybody_why_once(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", gate="open", die_at_start="out of bananas: 3 missing")
    with serving(model, scratch=tmp_path / "scratch") as router, ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(router.complete, "m") for _ in range(20)]
        eventually(lambda: router.metric(COLD) == 20, "all requests to wait")
        (model / "open").touch()
        for answer in (future.result() for future in answers):
            assert answer.status == 503
            error = answer.json["error"]
            assert error["code"] == "engine_start_failed"
            assert "exit status 1" in error["message"]
            assert error["message"].endswith("out of bananas: 3 missing")
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.headers["x-should-retry"] == "false"
        assert events(model).count("start") == 1
        # The cause is removed: after the pause it is tried again.
        write_model(model)
        eventually(lambda: router.complete("m").status == 200, "the next try")
        assert events(model).count("start") == 2


def test_the_official_client_raises_the_engines_words(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", die_at_start="no more bananas")
    with serving(model, scratch=tmp_path / "scratch", ) as router:  # fmt: skip
        url = f"http://127.0.0.1:{router.port}/v1"
        with (
            openai.OpenAI(base_url=url, api_key="none") as client,
            pytest.raises(openai.InternalServerError, match="no more bananas"),
        ):
            client.completions.create(model="m", prompt="Hi")
        assert events(model).count("start") == 1


def test_start_timeout(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", gate="never", stubborn_child=True)
    arguments = (model, "--start-timeout", "1")
    with serving(*arguments, scratch=tmp_path / "scratch") as router:
        answer = router.complete("m")
        assert answer.status == 503
        assert "not ready after 1 s" in answer.json["error"]["message"]
        assert router.left_over() == {}


def test_streaming_clients_get_signs_of_life(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", gate="open")
    arguments = (model, "--heartbeat", "0.05")
    with serving(*arguments, scratch=tmp_path / "scratch") as router:
        with contextlib.closing(router.connect()) as connection:
            body = {"model": "m", "stream": True}
            connection.request("POST", "/v1/completions", json.dumps(body))
            response = connection.getresponse()
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.readline() == b": waiting\n"
            (model / "open").touch()
            rest = response.read()
        assert rest.endswith(b"data: [DONE]\n\n")
        events_seen = [part for part in rest.split(b"\n\n") if part.startswith(b"data: {")]
        assert len(events_seen) == 3


@pytest.mark.parametrize("body", ['{"error": {"message": "too long"}}', '{"detail": "too long"}'])
def test_engine_error_after_a_sign_of_life(tmp_path: Path, body: str) -> None:
    model = write_model(tmp_path / "m", gate="open")
    arguments = (model, "--heartbeat", "0.05")
    with (
        serving(*arguments, scratch=tmp_path / "scratch") as router,
        openai.OpenAI(base_url=f"http://127.0.0.1:{router.port}/v1", api_key="x") as client,
        ThreadPoolExecutor(1) as pool,
    ):
        extra = {"script": {"status": 400, "body": body}}

        def ask() -> None:
            # The first heartbeat has been sent when this returns.
            stream = client.completions.create(
                model="m", prompt="Hi", stream=True, extra_body=extra
            )
            (model / "open").touch()
            for _ in stream:
                pass

        with pytest.raises(openai.APIError, match="too long"):
            pool.submit(ask).result()


def test_the_idle_instance_makes_room(tmp_path: Path) -> None:
    names = ("a", "b", "c")
    models = {name: write_model(tmp_path / name) for name in names}
    arguments = (*models.values(), "--max-instances", "2")
    with serving(*arguments, scratch=tmp_path / "scratch") as router:
        for name in names:
            assert router.complete(name).status == 200
        states = router.ask("GET", "/health").json["models"]
        assert sorted(states.values()) == ["ready", "ready", "stopped"]
        assert states["c"] == "ready"
        assert 'sllm_engine_stops_total{model="' in router.ask("GET", "/metrics").body.decode()
        assert len([c for c in router.left_over().values() if "guard.py" in c]) == 2


def test_a_busy_instance_is_not_evicted(tmp_path: Path) -> None:
    busy, other = write_model(tmp_path / "busy"), write_model(tmp_path / "other")
    arguments = (busy, other, "--max-instances", "1")
    with (
        serving(*arguments, scratch=tmp_path / "scratch") as router,
        ThreadPoolExecutor(1) as pool,
        contextlib.closing(router.connect()) as connection,
    ):
        body = {"model": "busy", "stream": True, "script": {"hang": True}}
        connection.request("POST", "/v1/completions", json.dumps(body))
        assert connection.getresponse().readline().startswith(b"data:")
        waiting = pool.submit(router.complete, "other")
        cold = 'sllm_cold_requests_total{model="other"}'
        eventually(lambda: router.metric(cold) == 1, "the other request to wait")
        assert router.ask("GET", "/health").json["models"]["busy"] == "ready"
        assert events(other) == []
        connection.close()
        assert waiting.result().status == 200
        assert router.ask("GET", "/health").json["models"] == {"busy": "stopped", "other": "ready"}


def test_waiting_has_an_end(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", gate="open")
    arguments = (model, "--queue-timeout", "0.5")
    with serving(*arguments, scratch=tmp_path / "scratch") as router:
        answer = router.complete("m")
        assert answer.status == 503
        assert answer.json["error"]["code"] == "unavailable"
        # The start goes on for those who come later.
        (model / "open").touch()
        eventually(lambda: router.complete("m").status == 200, "the engine")
        assert events(model).count("start") == 1


def test_the_queue_has_a_limit(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", gate="open")
    arguments = (model, "--max-queue", "2")
    with serving(*arguments, scratch=tmp_path / "s") as router, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(router.complete, "m") for _ in range(2)]
        eventually(lambda: router.metric(COLD) == 2, "two requests to wait")
        refused = router.complete("m")
        assert (refused.status, refused.json["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        (model / "open").touch()
        assert [answer.result().status for answer in waiting] == [200, 200]


def test_idle_instances_are_stopped(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    arguments = (model, "--keep-alive", "0.2")
    with serving(*arguments, scratch=tmp_path / "scratch") as router:
        assert router.complete("m").status == 200
        stopped = 'sllm_engine_stops_total{model="m",reason="idle"}'
        eventually(lambda: router.metric(stopped) == 1, "the idle instance to be stopped")
        eventually(lambda: not router.left_over(), "its processes to be gone")
        assert router.complete("m").status == 200
        assert events(model).count("start") == 2


def test_eager_starts_as_many_as_fit(tmp_path: Path) -> None:
    models = [write_model(tmp_path / name) for name in ("a", "b")]
    arguments = (*models, "--eager", "--max-instances", "1")
    with serving(*arguments, scratch=tmp_path / "scratch") as router:
        expected = {"a": "ready", "b": "stopped"}
        eventually(lambda: router.ask("GET", "/health").json["models"] == expected, "one to start")
        assert events(models[1]) == []


def test_eager(tmp_path: Path) -> None:
    models = [write_model(tmp_path / name) for name in ("a", "b")]
    with serving(*models, "--eager", scratch=tmp_path / "scratch") as router:
        ready = {"a": "ready", "b": "ready"}
        eventually(lambda: router.ask("GET", "/health").json["models"] == ready, "both to start")


def test_an_engine_that_dies_idle_is_replaced(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    with serving(model, scratch=tmp_path / "scratch") as router:
        assert router.complete("m").status == 200
        # It dies while it handles this; the request is given to a new one.
        assert router.complete("m", script={"die": "once"}).status == 200
        assert events(model).count("start") == 2
        stops = router.ask("GET", "/metrics").body.decode()
        assert 'reason="died"' in stops or 'reason="broken"' in stops


def test_a_request_that_kills_engines_is_not_repeated_for_ever(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    with serving(model, scratch=tmp_path / "scratch") as router:
        answer = router.complete("m", script={"die": "always"})
        assert answer.status == 502
        assert answer.json["error"]["code"] == "engine_failed"
        assert events(model).count("request") == 2
        assert router.complete("m").status == 200


def test_an_engine_that_lives_but_does_not_work_is_replaced(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    with serving(model, scratch=tmp_path / "scratch") as router:
        error = {"status": 500, "body": '{"error": {"message": "a bad day"}}'}
        assert router.complete("m", script=error).status == 500
        assert router.complete("m", script=error | {"fall_ill": True}).status == 500
        broken = 'sllm_engine_stops_total{model="m",reason="broken"}'
        eventually(lambda: router.metric(broken) == 1, "the ill engine to be noticed")
        assert router.complete("m").status == 200
        assert events(model).count("start") == 2, "an error alone is no reason"


def test_an_engine_that_dies_mid_stream(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    with serving(model, scratch=tmp_path / "scratch") as router:
        script = {"die_at_end": True, "chunks": ["ZGF0YTogMQoK", "ZGF0YTogMg=="]}  # 1, half of 2
        answer = router.complete("m", stream=True, script=script)
        first, last, end = answer.body.split(b"\n\n")
        assert (first, end) == (b"data: 1", b""), "half an event must not reach the client"
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "engine_failed"
        url = f"http://127.0.0.1:{router.port}/v1"
        with openai.OpenAI(base_url=url, api_key="none") as client:
            stream = client.completions.create(
                model="m", prompt="Hi", stream=True, extra_body={"script": {"die_at_end": True,
                "chunks": ["ZGF0YTogeyJjaG9pY2VzIjogW119Cgo="]}},
            )  # fmt: skip
            with pytest.raises(openai.APIError, match="broke off"):
                list(stream)


def test_load_records_of_engines_are_learned(tmp_path: Path) -> None:
    record = LoadRecord("m", "cpu", nbytes=1 << 30, seconds=0.5)
    record.files.append(FileRecord("f", 1 << 30, "uring", "cold", "disk", 0.0, 0.5, False))
    model = write_model(tmp_path / "m", load_records=json.dumps(record.as_dict()) + "\nnonsense\n")
    with serving(model, scratch=tmp_path / "scratch") as router:
        assert router.complete("m").status == 200
        assert router.metric('sllm_load_bytes_total{model="m",tier="disk"}') == 1 << 30
        assert router.metric('sllm_actual_seconds{kind="load",model="m"}') == 0.5
        assert router.metric('sllm_predicted_seconds{kind="start",model="m"}') == pytest.approx(15)
        assert router.metric('sllm_actual_seconds{kind="start",model="m"}')
        assert router.metric('sllm_prediction_error_ratio_count{kind="start"}') in (None, 0)
    assert "nonsense" in router.log


def test_routes_that_an_engine_does_not_serve(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    with serving(model, engine="mute", scratch=tmp_path / "scratch") as router:
        answer = router.ask("POST", "/v1/chat/completions", {"model": "m", "messages": []})
        assert (answer.status, answer.json["error"]["code"]) == (400, "unsupported_route")
        assert events(model) == []
        assert router.complete("m").status == 200


def leads(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


def test_a_storm_of_requests_for_more_models_than_fit(tmp_path: Path) -> None:
    """Starts, evictions, crashes and clients that leave, all at once: nobody waits for ever."""
    models = {name: write_model(tmp_path / name) for name in "abcd"}
    arguments = (*models.values(), "--max-instances", "2", "--stop-grace", "1")
    with serving(*arguments, scratch=tmp_path / "scratch") as router:

        def guards() -> set[int]:
            # A guard leads its session; what it has just forked is called the same for a moment.
            found = router.left_over().items()
            return {pid for pid, command in found if "guard.py" in command and leads(pid)}

        def ask(number: int) -> int:
            name = "abcd"[number * 7 % 4]
            if number % 10 == 3:
                with contextlib.closing(router.connect()) as connection:
                    connection.request("POST", "/v1/completions", json.dumps({"model": name}))
                return 200
            script = {"die": "always"} if number % 20 == 9 else {}
            answer = router.complete(name, stream=number % 2 == 0, script=script)
            # Seen before and after: they existed side by side.
            assert len(guards() & guards()) <= 2, "more engines than allowed"
            return answer.status

        with ThreadPoolExecutor(12) as pool:
            statuses = list(pool.map(ask, range(120)))
    # Whoever shares an engine with a request that kills it twice in a row may get the error too.
    assert set(statuses) <= {200, 502}
    assert statuses.count(200) >= 80
