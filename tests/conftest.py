"""Shared by the fast tests: models of every dtype, and nothing left behind."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from samples import DTYPES, random_tensor

from sllm.hookspecs import hookimpl
from sllm.loader.base import LoadRecord
from sllm.plugins import manager


@pytest.fixture(scope="session")
def every_dtype(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards holding every dtype, 0-d and zero-size tensors, and one tensor of a few MB."""
    directory = tmp_path_factory.mktemp("every-dtype")
    shards: list[dict[str, torch.Tensor]] = [{}, {}]
    for number, dtype in enumerate(DTYPES):
        shards[number % 2][f"{dtype}.odd"] = random_tensor(dtype, (3, 7), number)
        shards[number % 2][f"{dtype}.scalar"] = random_tensor(dtype, (), number)
        shards[number % 2][f"{dtype}.none"] = random_tensor(dtype, (4, 0, 2), number)
    shards[1]["large"] = random_tensor(torch.bfloat16, (1500, 1777), 99)
    names = [f"model-0000{n + 1}-of-00002.safetensors" for n in range(2)]
    for name, tensors in zip(names, shards, strict=True):
        save_file(tensors, directory / name, metadata={"format": "pt"})
    weight_map = {
        tensor: name for name, tensors in zip(names, shards, strict=True) for tensor in tensors
    }
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


@pytest.fixture
def records() -> Iterator[list[LoadRecord]]:
    """Load records of this test, through the hook."""
    seen: list[LoadRecord] = []

    class Observer:
        @hookimpl
        def sllm_load_finished(self, record: LoadRecord) -> None:
            seen.append(record)

    observer = Observer()
    manager().register(observer)
    yield seen
    manager().unregister(observer)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No thread of ours outlives a test that asked for none."""
    yield
    for thread in threading.enumerate():
        assert not thread.name.startswith("sllm-"), f"{thread} is still running"


@pytest.fixture(scope="session", autouse=True)
def no_shared_memory_left() -> Iterator[None]:
    """The test run leaves nothing of ours in shared memory."""
    folder = Path("/dev/shm")
    before = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    yield
    if folder.is_dir():
        assert not [n for n in {path.name for path in folder.iterdir()} - before if "sllm" in n]
