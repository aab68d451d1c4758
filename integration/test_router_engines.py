"""Real engines behind `sllm serve`, driven by the official OpenAI client."""

from __future__ import annotations

import os
import signal
import tempfile
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from router_harness import Serving, eventually

from sllm_bench.models import make_model

OPTIONS = {
    "vllm": ("dtype=float32", "max-model-len=1024", "kv-cache-memory-bytes=100M"),
    "transformers": ("dtype=float32",),
}
PROMPT = "The quick brown fox"
MESSAGES = [{"role": "user", "content": "Tell me about numbers."}]
GREEDY = {"temperature": 0.0, "max_tokens": 24}


def serve(model: Path, engine: str, scratch: Path) -> Serving:
    options = [part for option in OPTIONS[engine] for part in ("-o", option)]
    return Serving(model, "--heartbeat", "1", *options, scratch=scratch, engine=engine)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Short, because vLLM puts Unix sockets there."""
    with tempfile.TemporaryDirectory(prefix="sllm-") as directory:
        yield Path(directory)


@pytest.fixture(
    scope="module", params=["transformers", pytest.param("vllm", marks=pytest.mark.vllm)]
)
def router(model: Path, request: pytest.FixtureRequest) -> Iterator[Serving]:
    """One router for each engine; after Ctrl-C nothing is left of it."""
    with tempfile.TemporaryDirectory(prefix="sllm-") as scratch:
        router = serve(model, request.param, Path(scratch))
        try:
            yield router
        finally:
            segments = router.shared_memory()
            status = router.end(signal.SIGINT)
        assert status == 0, router.log
        assert router.left_over() == {}
        assert [segment for segment in segments if segment.exists()] == []
        assert [p.name for p in Path(scratch).iterdir() if "torchinductor" not in p.name] == []


@pytest.fixture
def client(router: Serving) -> Iterator[openai.OpenAI]:
    url = f"http://127.0.0.1:{router.port}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=300) as client:
        yield client


def test_many_first_requests_start_one_engine(router: Serving, client: openai.OpenAI) -> None:
    def ask(stream: bool) -> str:
        if not stream:
            answer = client.completions.create(model="tiny", prompt=PROMPT, **GREEDY)
            return answer.choices[0].text
        chunks = client.completions.create(model="tiny", prompt=PROMPT, stream=True, **GREEDY)
        return "".join(chunk.choices[0].text for chunk in chunks)

    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(ask, [True, False, True, False]))
    assert len(set(texts)) == 1, "greedy, so streaming or not must not matter"
    assert texts[0]
    engine = router.ask("GET", "/v1/models").json["data"][0]["engine"]
    starts = f'sllm_engine_starts_total{{engine="{engine}",model="tiny",result="ready"}}'
    assert router.metric(starts) == 1


def test_chat(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, **GREEDY)
    usage = {"stream_options": {"include_usage": True}}
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, **usage, **GREEDY
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    finished = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert finished[-1] == whole.choices[0].finish_reason


def test_the_weights_came_through_sllm(router: Serving, model: Path) -> None:
    text = router.ask("GET", "/metrics").body.decode()
    loaded = [row for row in text.splitlines() if row.startswith("sllm_load_bytes_total")]
    total = sum(float(row.rpartition(" ")[2]) for row in loaded)
    assert total >= 0.9 * (model / "model.safetensors").stat().st_size


def test_models_and_health(router: Serving, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert router.ask("GET", "/health").json == {"status": "ok", "models": {"tiny": "ready"}}


def test_engine_errors_reach_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="tiny", prompt=PROMPT, temperature=-1)
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="tiny", prompt="word " * 5000, max_tokens=1)


def running(router: Serving) -> float:
    """Requests that vLLM itself says it works on."""
    _, _, url = router.log.partition("tiny is ready on ")
    with urllib.request.urlopen(f"{url.split()[0]}/metrics") as answer:
        rows = answer.read().decode().splitlines()
    (row,) = [row for row in rows if row.startswith("vllm:num_requests_running{")]
    return float(row.rpartition(" ")[2])


def test_leaving_frees_the_engine(router: Serving, client: openai.OpenAI) -> None:
    if router.ask("GET", "/v1/models").json["data"][0]["engine"] != "vllm":
        pytest.skip("only vLLM counts what it is working on")
    stream = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=1000, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    eventually(lambda: running(router) == 1, "vLLM to count the request")
    stream.close()
    eventually(lambda: running(router) == 0, "vLLM to stop generating")


@pytest.mark.vllm
def test_kill_9_of_its_parts_and_of_the_router(model: Path, scratch: Path) -> None:
    router = serve(model, "vllm", scratch)
    try:
        assert router.complete("tiny", max_tokens=1).status == 200
        processes = router.left_over()
        assert len(processes) >= 4, "guard, API server, engine core, worker"
        segments = router.shared_memory()
        (core,) = [pid for pid, name in processes.items() if "EngineCore" in name]
        os.kill(core, signal.SIGKILL)
        # What is asked meanwhile may fail; then another engine answers.
        eventually(lambda: router.complete("tiny", max_tokens=1).status == 200, "a new engine")
        assert core not in router.left_over()
        assert segments, "vLLM's processes talk through shared memory"
        segments |= router.shared_memory()
    finally:
        router.end(signal.SIGKILL)
    eventually(lambda: not router.left_over(), "every process to end")
    assert [segment for segment in segments if segment.exists()] == []
    assert [p.name for p in scratch.iterdir() if "torchinductor" not in p.name] == []
