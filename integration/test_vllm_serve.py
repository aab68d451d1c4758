"""The door itself: `vllm serve DIR --load-format sllm`, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm_process import DEADLINE, VllmProcess
from vllm_server import serving

import sllm
from sllm_bench.models import make_model

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

PROMPT = "Natalia sold clips to 48 of her friends"
OPTIONS = {"dtype": "float32", "max-model-len": "256", "kv-cache-memory-bytes": "32M"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "plain"
    return make_model(folder, "llama", dtype="float32", shards=3)


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[int]]:
    """What vLLM answers when it loads by itself."""
    with VllmProcess(tmp_path_factory.mktemp("stock") / "log") as process:
        answers = process.ask(
            do="tokens", model=str(model), format="auto", dtype="float32", prompts=[PROMPT]
        )
    yield answers[0]


def ask(server: Any) -> list[int]:
    body = {
        "model": "served",
        "prompt": PROMPT,
        "max_tokens": 24,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    answer = server.post("/v1/completions", body)
    tokens: list[int] = answer["choices"][0]["token_ids"]
    return tokens


def records_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_serve(model: Path, expected: list[int], tmp_path: Path) -> None:
    records = tmp_path / "records"
    with serving(model, tmp_path / "log", OPTIONS, SLLM_RECORDS=str(records)) as server:
        server.wait_ready()
        assert ask(server) == expected
        output = server.output()
    assert "Registered model loader" in output
    assert " GB of weights in " in output
    (record,) = records_in(records)
    assert record["error"] is None
    assert record["model"] == str(model)
    assert record["nbytes"] == sum(file.stat().st_size for file in model.glob("*.safetensors"))


def test_serve_tensor_parallel_from_a_prepared_model(
    model: Path, expected: list[int], tmp_path: Path
) -> None:
    prepared = tmp_path / "prepared"
    sllm.convert(model, prepared)
    records = tmp_path / "records"
    options = {**OPTIONS, "tensor-parallel-size": "2"}
    with serving(prepared, tmp_path / "log", options, SLLM_RECORDS=str(records)) as server:
        server.wait_ready()
        assert ask(server) == expected
    loads = records_in(records)
    assert len(loads) == 2
    # Through the page cache, so that the second rank does not read from disk what the first has.
    assert {file["method"] for load in loads for file in load["files"]} == {"map"}


def test_a_damaged_model_ends_the_server_with_our_message(model: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in model.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    shard = sorted(damaged.glob("*.safetensors"))[1]
    with shard.open("r+b") as opened:
        opened.truncate(shard.stat().st_size - 1000)
    with serving(damaged, tmp_path / "log", OPTIONS) as server:
        assert server.process.wait(DEADLINE) != 0
        output = server.output()
    assert "sllm.errors.CorruptCheckpointError" in output
    assert shard.name in output
