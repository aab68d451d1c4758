"""Shared by the fast tests: models of every dtype, and nothing left behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sllm.hookspecs import hookimpl
from sllm.loader.base import LoadRecord
from sllm.plugins import manager

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.uint16,
    torch.float16,
    torch.bfloat16,
    torch.int32,
    torch.uint32,
    torch.float32,
    torch.int64,
    torch.uint64,
    torch.float64,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
]


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Random bits of that dtype, NaNs and all (booleans are 0 or 1)."""
    generator = torch.Generator().manual_seed(seed)
    count = 1
    for extent in shape:
        count *= extent
    high = 2 if dtype is torch.bool else 256
    raw = torch.randint(0, high, (count * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).view(shape) if count else torch.empty(shape, dtype=dtype)


def bits(tensor: torch.Tensor) -> bytes:
    """The tensor's bytes, so that NaNs compare too."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Same names, dtypes, shapes and bits."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert ours[name].shape == tensor.shape, name
        assert bits(ours[name]) == bits(tensor), name


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
    import json

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
    """No file descriptor and no thread outlives a test that asked for none."""
    yield
    for thread in threading.enumerate():
        assert not thread.name.startswith("sllm-"), f"{thread} is still running"


@pytest.fixture(scope="session", autouse=True)
def no_shared_memory_left() -> Iterator[None]:
    """The test run leaves nothing of ours in shared memory."""
    folder = Path("/dev/shm")
    before = set(os.listdir(folder)) if folder.is_dir() else set()
    yield
    if folder.is_dir():
        assert not [n for n in set(os.listdir(folder)) - before if "sllm" in n]
