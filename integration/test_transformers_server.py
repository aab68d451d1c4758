"""The transformers engine over real HTTP, with OpenAI's own client."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sllm.errors import OptionError
from sllm.interfaces import LaunchRequest
from sllm.plugins import named
from sllm_bench.models import make_model

NAME = "tiny/llama"
PROMPT = "The weights of a large language model"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("server") / "model", "llama")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def engine(model: Path, log: Path, **options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The engine as the router would start it; its URL and process."""
    port = free_port()
    adapter = named("sllm_engines", "transformers")
    assert adapter.unavailable() is None
    launch = adapter.launch(LaunchRequest(NAME, model, "127.0.0.1", port, options))
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            launch.argv, env={**os.environ, **launch.env}, stdout=output, stderr=output
        )
    try:
        wait_until_ready(url + launch.ready_path, process, log)
        yield url, process
    finally:
        process.terminate()
        process.wait(30)


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until `url` answers 200; fails when the process ends first."""
    while process.poll() is None:
        try:
            with urllib.request.urlopen(url) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"the engine ended with {process.returncode}:\n{log.read_text()}")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the engine writes."""
    return tmp_path_factory.mktemp("server") / "log"


@pytest.fixture(scope="module")
def url(model: Path, log: Path) -> Iterator[str]:
    with engine(model, log, threads="1") as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def reference(model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model)


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Any:
    return AutoTokenizer.from_pretrained(model)


def greedy(reference: Any, ids: list[int], count: int) -> list[int]:
    """What transformers itself generates."""
    given = torch.tensor([ids])
    out = reference.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=count, do_sample=False
    )
    return list(out[0, len(ids) :].tolist())


def test_models_and_health(client: openai.OpenAI, url: str) -> None:
    assert [card.id for card in client.models.list()] == [NAME]
    with urllib.request.urlopen(f"{url}/health") as answer:
        assert answer.status == 200


def test_greedy_completion_equals_generate(
    client: openai.OpenAI, reference: Any, tokenizer: Any
) -> None:
    ids = tokenizer(PROMPT)["input_ids"]
    expected = greedy(reference, ids, 40)
    for prompt in (PROMPT, ids, [ids], [PROMPT]):
        answer = client.completions.create(model=NAME, prompt=prompt, max_tokens=40, temperature=0)
        choice = answer.choices[0]
        assert choice.text == tokenizer.decode(expected, skip_special_tokens=True)
        assert choice.finish_reason == ("length" if len(expected) == 40 else "stop")
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(ids)
        assert answer.usage.completion_tokens == len(expected)
        assert answer.usage.total_tokens == len(ids) + len(expected)


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.0, "seed": 7}], ids=str)
def test_stream_equals_whole(client: openai.OpenAI, sampling: dict[str, Any]) -> None:
    request: dict[str, Any] = {"model": NAME, "prompt": PROMPT, "max_tokens": 60, **sampling}
    whole = client.completions.create(**request)
    chunks = list(
        client.completions.create(**request, stream=True, stream_options={"include_usage": True})
    )
    texts = [chunk.choices[0].text for chunk in chunks if chunk.choices]
    assert len(texts) > 10
    assert "".join(texts) == whole.choices[0].text
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons == [None] * (len(reasons) - 1) + [whole.choices[0].finish_reason]
    assert chunks[-1].usage == whole.usage
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_chat(client: openai.OpenAI, reference: Any, tokenizer: Any) -> None:
    parts = [{"type": "text", "text": text} for text in ("What is ", "a GPU?")]
    messages: list[Any] = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": parts},
    ]
    plain = [messages[0], {"role": "user", "content": "What is a GPU?"}]
    ids = tokenizer.apply_chat_template(plain, add_generation_prompt=True, return_dict=False)
    expected = tokenizer.decode(greedy(reference, ids, 24), skip_special_tokens=True)
    request: dict[str, Any] = {
        "model": NAME,
        "messages": messages,
        "max_completion_tokens": 24,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**request)
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].message.content == expected
    assert whole.usage is not None and whole.usage.prompt_tokens == len(ids)
    chunks = list(client.chat.completions.create(**request, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_seed(client: openai.OpenAI) -> None:
    def sample(seed: int | None) -> str:
        answer = client.completions.create(
            model=NAME, prompt=PROMPT, max_tokens=24, temperature=1.0, top_p=0.95, seed=seed
        )
        return answer.choices[0].text

    assert sample(1) == sample(1)
    assert len({sample(1), sample(2), sample(3)}) > 1
    assert len({sample(None) for _ in range(4)}) > 1


def test_stop_strings(client: openai.OpenAI) -> None:
    request: dict[str, Any] = {"model": NAME, "prompt": PROMPT, "max_tokens": 60, "temperature": 0}
    text = client.completions.create(**request).choices[0].text
    # Straddles tokens: characters from the middle of the output on.
    middle = len(text) // 2
    stop = text[middle : middle + 5]
    expected = text[: text.index(stop)]
    for given in (stop, ["never to be found", stop]):
        whole = client.completions.create(**request, stop=given)
        assert whole.choices[0].text == expected
        assert whole.choices[0].finish_reason == "stop"
        chunks = list(client.completions.create(**request, stop=given, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == expected
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_end_of_sequence(client: openai.OpenAI, reference: Any, tokenizer: Any) -> None:
    """The engine stops where the model says so, and goes on where it is told to."""
    eos = tokenizer.eos_token_id
    answer = client.completions.create(
        model=NAME,
        prompt=PROMPT,
        max_tokens=1500,
        temperature=1.0,
        seed=3,
    )
    assert answer.choices[0].finish_reason == "stop", "choose a seed that ends"
    assert answer.usage is not None and answer.usage.completion_tokens < 1500
    longer = client.completions.create(
        model=NAME,
        prompt=PROMPT,
        max_tokens=answer.usage.completion_tokens + 5,
        temperature=1.0,
        seed=3,
        extra_body={"ignore_eos": True},
    )
    assert longer.choices[0].finish_reason == "length"
    assert longer.usage is not None
    assert longer.usage.completion_tokens == answer.usage.completion_tokens + 5
    assert longer.choices[0].text.startswith(answer.choices[0].text)
    assert eos is not None


def test_requests_queue(client: openai.OpenAI) -> None:
    def ask(number: int) -> str:
        answer = client.completions.create(
            model=NAME, prompt=f"Request {number}", max_tokens=16, temperature=0
        )
        return answer.choices[0].text

    one_by_one = [ask(number) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(6))) == one_by_one


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_leaves_frees_the_engine(
    url: str, client: openai.OpenAI, log: Path, stream: bool
) -> None:
    """Its tokens are not generated to the end before the next request's turn."""
    wanted = {"model": NAME, "prompt": PROMPT, "max_tokens": 2000, "ignore_eos": True}
    payload = json.dumps({**wanted, "stream": stream}).encode()
    address = urlsplit(url)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    before = log.read_text().count("(cancelled)")
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode() + payload)
        while client.get(f"{url}/health", cast_to=dict[str, Any])["running"] == 0:
            time.sleep(0.01)
    answer = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=1)
    assert answer.choices[0].finish_reason == "length"
    assert log.read_text().count("(cancelled)") == before + 1


TOO_LONG = "context_length_exceeded"
BAD = [
    ({"model": "other", "prompt": "x"}, 404, "model", "model_not_found"),
    ({"model": NAME}, 400, "prompt", None),
    ({"model": NAME, "prompt": "x", "temperature": -1}, 400, "temperature", None),
    ({"model": NAME, "prompt": "x", "top_p": 0}, 400, "top_p", None),
    ({"model": NAME, "prompt": "x", "max_tokens": 0}, 400, "max_tokens", None),
    ({"model": NAME, "prompt": "x", "n": 2}, 400, "n", None),
    ({"model": NAME, "prompt": "x", "stop": ""}, 400, "stop", None),
    ({"model": NAME, "prompt": "x", "nonsense": 1}, 400, "nonsense", None),
    ({"model": NAME, "prompt": ["a", "b"]}, 400, "prompt", None),
    ({"model": NAME, "prompt": [10**9]}, 400, "prompt", None),
    ({"model": NAME, "prompt": [1, "x"]}, 400, "prompt", None),
    ({"model": NAME, "prompt": []}, 400, "prompt", None),
    (
        {"model": NAME, "prompt": "x", "max_tokens": 10**6},
        400,
        "max_tokens",
        "context_length_exceeded",
    ),
    ({"model": NAME, "prompt": [3] * 3000}, 400, "prompt", TOO_LONG),
]


@pytest.mark.parametrize(("body", "status", "param", "code"), BAD, ids=lambda v: str(v)[:60])
def test_bad_requests(
    client: openai.OpenAI, body: dict[str, Any], status: int, param: str, code: str | None
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.post("/completions", body=body, cast_to=object)
    assert caught.value.status_code == status
    assert caught.value.type == "invalid_request_error"
    assert caught.value.param == param
    assert caught.value.code == code
    assert caught.value.message


def test_bad_chats(client: openai.OpenAI) -> None:
    turns = [{"role": "user", "content": "x"}]
    bad: list[dict[str, Any]] = [
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        {"messages": turns, "tools": [{"type": "function"}]},
        {
            "messages": [{"role": "user", "content": "x"}],
            "response_format": {"type": "json_object"},
        },
        {"messages": "hello"},
    ]
    for body in bad:
        with pytest.raises(openai.BadRequestError):
            client.post("/chat/completions", body={"model": NAME, **body}, cast_to=object)


def test_bad_json_and_unknown_route(url: str) -> None:
    for path, body, status in (("completions", b"{", 400), ("nothing", b"{}", 404)):
        request = urllib.request.Request(
            f"{url}/v1/{path}", data=body, headers={"Content-Type": "application/json"}
        )
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        assert caught.value.code == status
        assert json.load(caught.value)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_signal_ends_it_cleanly_in_the_middle_of_a_stream(
    model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with engine(model, tmp_path / "log", threads="1") as (url, process):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        body = {"ignore_eos": True}
        stream = client.completions.create(
            model=NAME, prompt=PROMPT, max_tokens=2000, stream=True, extra_body=body
        )
        next(iter(stream))
        process.send_signal(number)
        assert process.wait(60) == 0
        with pytest.raises(openai.APIError):
            for _ in stream:
                pass
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_broken_model_is_one_line_and_an_exit_code(model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((model / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"no model")
    done = subprocess.run(
        [sys.executable, "-m", "sllm_transformers.server", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "model.safetensors" in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_engine_option(model: Path) -> None:
    adapter = named("sllm_engines", "transformers")
    with pytest.raises(OptionError, match="dtype"):
        adapter.launch(LaunchRequest(NAME, model, "127.0.0.1", 1, {"colour": "red"}))
