"""What passes through the router, and what it answers itself: real sockets, a scripted engine."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from router_harness import Serving, events, eventually, serving, write_model

CHUNKS = [
    b'data: {"a": 1}\n\n',
    b": a comment\n",
    b"\n",
    b'data: {"text": "\xe4\xbd',  # a character and an event cut in two
    b'\xa0"}\n',
    b"\n",
    b"event: odd\r\ndata: x\r\n\r\n",
    b"data: [DONE]\n\n",
]


def encoded(chunks: list[bytes]) -> list[str]:
    return [base64.b64encode(chunk).decode() for chunk in chunks]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "alpha")


@pytest.fixture(scope="module")
def router(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    scratch = tmp_path_factory.mktemp("scratch")
    arguments = (model, "--max-body", "2", "--read-timeout", "5", "--drain", "0")
    with serving(*arguments, scratch=scratch) as router:
        yield router
    assert list(scratch.iterdir()) == []


def test_the_official_client_works(router: Serving) -> None:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{router.port}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["alpha"]
        assert client.models.retrieve("alpha").id == "alpha"
        whole = client.completions.create(model="alpha", prompt="Hi")
        assert whole.choices[0].text == "Hello world"
        stream = client.completions.create(model="alpha", prompt="Hi", stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == "Hello wörld"
        with pytest.raises(openai.NotFoundError, match="served here: alpha"):
            client.completions.create(model="nobody", prompt="Hi")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_body_path_and_headers_arrive_untouched(router: Serving, path: str) -> None:
    body = b'{ "model":"alpha", "script":{"echo":true}, "odd field": [1.0, 1e3, "\\u00e9"] }'
    headers = {
        "Authorization": "Bearer client-key",
        "X-Custom": "a, b",
        "Accept-Encoding": "br",
        "User-Agent": "tests",
        "X-Request-Id": "my-id",
        "Content-Type": "application/json; charset=utf-8",
    }
    answer = router.ask("POST", path + "?a=1%2F&b=%20", body, headers)
    assert answer.status == 200
    seen = answer.json
    assert base64.b64decode(seen["body"]) == body
    assert seen["path"] == path + "?a=1%2F&b=%20"
    for name, value in headers.items():
        assert [v for n, v in seen["headers"] if n == name.lower()] == [value]
    assert answer.headers["x-engine"] == "scripted"
    assert answer.headers["x-request-id"] == "my-id"


def test_hop_by_hop_headers_stay_behind(router: Serving) -> None:
    headers = {"Connection": "keep-alive", "Keep-Alive": "timeout=5", "TE": "trailers"}
    seen = router.complete("alpha", headers=headers, script={"echo": True}).json["headers"]
    assert {name for name, _ in seen}.isdisjoint({"keep-alive", "te", "connection"})
    assert [value for name, value in seen if name == "x-request-id"] != [""]


def test_a_stream_is_byte_exact(router: Serving) -> None:
    answer = router.complete("alpha", stream=True, script={"chunks": encoded(CHUNKS)})
    assert answer.body == b"".join(CHUNKS)
    assert answer.headers["content-type"] == "text/event-stream"


def test_events_arrive_while_the_engine_still_writes(router: Serving, model: Path) -> None:
    script = {"chunks": encoded([b"data: first\n\n"]), "hang": True}
    body = json.dumps({"model": "alpha", "stream": True, "script": script})
    with contextlib.closing(router.connect()) as connection:
        connection.request("POST", "/v1/completions", body)
        response = connection.getresponse()
        assert response.readline() == b"data: first\n"


def test_a_stream_that_is_no_event_stream_passes_too(router: Serving) -> None:
    script = {"chunks": encoded([b"abc", b"def\n\nrest"]), "content_type": "text/plain"}
    answer = router.complete("alpha", stream=True, script=script)
    assert (answer.status, answer.body) == (200, b"abcdef\n\nrest")
    assert answer.headers["content-type"] == "text/plain"


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 1, 20 << 20])
def test_bodies_of_any_size(router: Serving, size: int) -> None:
    answer = router.complete("alpha", script={"size": size})
    assert answer.body == b"x" * size


def test_engine_errors_pass_through(router: Serving) -> None:
    text = '{"error": {"message": "no such token", "type": "BadRequestError", "code": 400}}'
    answer = router.complete("alpha", script={"status": 400, "body": text})
    assert (answer.status, answer.body.decode()) == (400, text)
    assert router.complete("alpha", script={"status": 500, "body": "oops"}).status == 500


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_aborts_the_engine(router: Serving, model: Path, stream: bool) -> None:
    before = events(model).count("aborted")
    hanging = events(model).count("hanging")
    connection = router.connect()
    body = {"model": "alpha", "stream": stream, "script": {"hang": True}}
    connection.request("POST", "/v1/completions", json.dumps(body))
    eventually(lambda: events(model).count("hanging") > hanging, "the engine to hang")
    assert events(model).count("aborted") == before
    connection.close()
    eventually(lambda: events(model).count("aborted") == before + 1, "the engine to see it")
    idle = 'sllm_requests_in_flight{model="alpha"}'
    eventually(lambda: router.metric(idle) == 0, "the request to be over")


def test_a_silent_engine_is_given_up(router: Serving, model: Path) -> None:
    answer = router.complete("alpha", script={"hang": True})
    assert answer.status == 504
    assert answer.json["error"]["code"] == "engine_timeout"
    assert events(model).count("start") == 1, "slow is not broken: it must not be restarted"


def assert_openai_error(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, Any] = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    return error


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b"[1]", b'"alpha"', b"[" * 100_000, b'{"n": ' + b"9" * 5000 + b"}"],
    ids=["empty", "cut", "not utf-8", "list", "string", "deep", "huge number"],
)  # fmt: skip
def test_bad_json(router: Serving, body: bytes) -> None:
    assert_openai_error(router.ask("POST", "/v1/completions", body), 400, "invalid_json")


@pytest.mark.parametrize("name", [None, 3, "", ["alpha"]])
def test_bad_model_field(router: Serving, name: object) -> None:
    answer = router.ask("POST", "/v1/completions", {"model": name})
    assert assert_openai_error(answer, 400, "missing_model")["param"] == "model"


def test_unknown_model_lists_the_known_ones(router: Serving) -> None:
    error = assert_openai_error(router.complete("x" * 5000), 404, "model_not_found")
    assert "alpha" in error["message"]
    assert len(error["message"]) < 1000
    assert_openai_error(router.ask("GET", "/v1/models/nobody"), 404, "model_not_found")


def test_wrong_method_and_path(router: Serving) -> None:
    answer = router.ask("GET", "/v1/completions")
    assert_openai_error(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    answer = router.ask("POST", "/v1/models", {})
    assert_openai_error(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD"
    assert_openai_error(router.ask("GET", "/v1/nothing"), 404, "unknown_url")
    assert_openai_error(router.ask("GET", "/"), 404, "unknown_url")


def test_a_body_over_the_limit(router: Serving) -> None:
    # Announced: refused before anything is sent.
    with contextlib.closing(router.connect()) as connection:
        connection.putrequest("POST", "/v1/completions")
        connection.putheader("content-length", str(1 << 40))
        connection.endheaders()
        response = connection.getresponse()
        assert response.status == 413
        assert json.loads(response.read())["error"]["code"] == "request_too_large"
    # Not announced: refused when it has become too much.
    with contextlib.closing(router.connect()) as connection:
        chunks = iter([b"x" * (1 << 20)] * 3)
        connection.request("POST", "/v1/completions", chunks, encode_chunked=True)
        assert connection.getresponse().status == 413
    body = {"padding": "x" * (1 << 20), "script": {"size": 3}}
    assert router.complete("alpha", **body).body == b"xxx"


def test_health_and_models(router: Serving) -> None:
    assert router.complete("alpha").status == 200
    assert router.ask("GET", "/health").json == {"status": "ok", "models": {"alpha": "ready"}}
    (entry,) = router.ask("GET", "/v1/models").json["data"]
    assert entry["id"] == "alpha"
    assert entry["object"] == "model"
    assert entry["owned_by"] == "sllm"
    head = router.ask("HEAD", "/health")
    assert (head.status, head.body) == (200, b"")


def test_many_streams_at_once_stay_apart(router: Serving) -> None:
    def one(number: int) -> bool:
        chunks = [f"data: {number} {i}\n\n".encode() for i in range(50)]
        answer = router.complete("alpha", stream=True, script={"chunks": encoded(chunks)})
        return answer.body == b"".join(chunks)

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(one, range(100)))


def test_metrics_count_what_happened(router: Serving) -> None:
    sample = 'sllm_requests_total{code="200",model="alpha",route="/v1/completions"}'
    router.complete("alpha")
    before = router.metric(sample)
    assert before is not None
    router.complete("alpha")
    assert router.metric(sample) == before + 1
    router.complete("never heard of")
    assert router.metric(sample.replace("200", "404").replace("alpha", "-"))
    assert router.metric('sllm_instances{model="alpha",state="ready"}') == 1
    assert router.metric('sllm_first_byte_seconds_count{model="alpha"}')
    assert b"never heard of" not in router.ask("GET", "/metrics").body
