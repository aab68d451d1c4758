"""Memory as Python sees it: exports, lifetimes, the pool."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from sllm import _native

MEGA = 1 << 20


def test_exports_are_the_same_writable_bytes() -> None:
    region = _native.RegionPool(0).allocate(5000)
    assert region.nbytes == len(region) == 5000
    assert region.address % 4096 == 0
    assert region.kind == "anonymous"
    assert region.__dlpack_device__() == (1, 0)
    tensor = torch.from_dlpack(region)
    array = np.from_dlpack(region)
    view = memoryview(region)
    assert tensor.data_ptr() == array.ctypes.data == region.address
    assert tensor.dtype == torch.uint8
    assert tensor.shape == (5000,)
    assert (view.nbytes, view.readonly, view.format) == (5000, False, "B")
    tensor[4999] = 7
    view[0] = 9
    assert (array[4999], array[0], tensor[0].item()) == (7, 9, 9)
    assert np.asarray(view).ctypes.data == region.address


def test_dlpack_takes_the_newer_arguments() -> None:
    region = _native.RegionPool(0).allocate(10)
    for arguments in (
        {},
        {"stream": None},
        {"max_version": (1, 0)},
        {"max_version": (1, 1), "dl_device": (1, 0), "copy": None},
        {"stream": None, "max_version": None, "dl_device": None, "copy": False},
    ):
        assert type(region.__dlpack__(**arguments)).__name__ == "PyCapsule"


def test_an_empty_region_exports_too() -> None:
    region = _native.RegionPool(0).allocate(0)
    assert memoryview(region).nbytes == 0
    assert torch.from_dlpack(region).shape == (0,)


@pytest.mark.parametrize("export", [memoryview, torch.from_dlpack, np.from_dlpack])
def test_memory_lives_as_long_as_any_export(export) -> None:
    pool = _native.RegionPool(64 * MEGA)
    region = pool.allocate(3 * MEGA, touch=True)
    exported = export(region)
    exported[-1] = 42
    del region
    gc.collect()
    assert pool.held_bytes == 0
    assert exported[-1] == 42
    del exported
    gc.collect()
    assert pool.held_bytes == 3 * MEGA


def test_freed_regions_are_used_again() -> None:
    pool = _native.RegionPool(64 * MEGA)
    region = pool.allocate(8 * MEGA)
    address = region.address
    del region
    assert pool.held_bytes == 8 * MEGA
    assert pool.allocate(7 * MEGA).address == address
    pool.clear()
    assert pool.held_bytes == 0


def test_a_pool_without_room_keeps_nothing() -> None:
    pool = _native.RegionPool(MEGA)
    pool.allocate(2 * MEGA)
    assert pool.held_bytes == 0


def test_jobs_use_the_pool(tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    data = os.urandom(4 * MEGA + 1)
    path.write_bytes(data)
    pool = _native.RegionPool(64 * MEGA)
    addresses = set()
    for _ in range(3):
        request = _native.FileRequest(str(path), len(data), [(0, len(data))], method="buffered")
        job = _native.LoadJob([request], pool=pool)
        job.start()
        job.wait()
        region = job.region(0)
        addresses.add(region.address)
        assert bytes(memoryview(region)) == data
        del job, region
        assert pool.held_bytes >= len(data)
    assert len(addresses) == 1


def test_reads_into_given_memory(tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(b"abc" * 2000)
    region = _native.RegionPool(0).allocate(8192, touch=True)
    request = _native.FileRequest(str(path), 6000, [(0, 6000)], into=region)
    job = _native.LoadJob([request])
    job.start()
    job.wait()
    assert job.region(0).address == region.address
    assert bytes(memoryview(region)[:6000]) == b"abc" * 2000
    with pytest.raises(ValueError, match="8192 bytes given, 12288 needed"):
        _native.FileRequest(str(path), 8193, [], into=region)
    with pytest.raises(ValueError, match="map"):
        _native.FileRequest(str(path), 6000, [], into=region, method="map")


def test_registered_buffers_change_no_byte(tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    data = os.urandom(3 * MEGA + 77)
    path.write_bytes(data)
    probe = _native.probe(str(path))
    if not (probe["direct"] and probe["uring"]):
        pytest.skip("no direct reads through io_uring here")
    pool = _native.RegionPool(0)
    requests = [
        _native.FileRequest(
            str(path),
            len(data),
            [(0, len(data))],
            method="uring",
            into=pool.allocate(len(data), touch=True),
        )
        for _ in range(3)
    ]
    job = _native.LoadJob(requests, register_buffers=True, block_size=65536)
    job.start()
    job.wait()
    for file in range(3):
        assert bytes(memoryview(job.region(file))) == data
    # Pinned by whoever may; asking is never an error.
    assert all(stats.reason.startswith("asked for") for stats in job.stats())


def test_more_memory_than_there_is() -> None:
    pool = _native.RegionPool(0)
    with pytest.raises(MemoryError):
        pool.allocate(1 << 62)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="unknown method 'mmap'"):
        _native.FileRequest("f", 0, [], method="mmap")
    with pytest.raises(TypeError):
        _native.FileRequest("f", -1, [])
    with pytest.raises(TypeError):
        _native.FileRequest("f", 0, [(0,)])
    with pytest.raises(ValueError, match="past the end"):
        _native.LoadJob([_native.FileRequest("f", 10, [(0, 11)])])
    with pytest.raises(ValueError, match="overlaps"):
        _native.LoadJob([_native.FileRequest("f", 10, [(0, 5), (4, 1)])])
    with pytest.raises(ValueError, match="block size"):
        _native.LoadJob([_native.FileRequest("f", 10, [(0, 5)])], block_size=5000)
    with pytest.raises(ValueError, match="null"):
        _native.FileRequest("f\0g", 0, [])
