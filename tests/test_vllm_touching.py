"""Touching memory ahead changes no byte, wherever the tensors lie."""

from __future__ import annotations

from mmap import PAGESIZE
from pathlib import Path

import pytest
import torch

from sllm_vllm.touching import TouchAhead, page_ranges

MIB = 1 << 20


def resident_pages(tensor: torch.Tensor) -> int:
    """4 KiB pages of the tensor's memory that exist, from the kernel's page map."""
    first = tensor.data_ptr() // PAGESIZE
    count = tensor.numel() * tensor.element_size() // PAGESIZE
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        pagemap.seek(first * 8)
        entries = pagemap.read(count * 8)
    return sum(entries[8 * i + 7] >> 7 for i in range(len(entries) // 8))


def test_values_stay() -> None:
    tensors = [torch.arange(MIB, dtype=torch.int64) + n for n in range(3)]
    before = [tensor.clone() for tensor in tensors]
    with TouchAhead(tensors) as touching:
        touching.wait()
    assert touching.touched >= sum(t.numel() * 8 - 2 * PAGESIZE for t in tensors)
    for tensor, copy in zip(tensors, before, strict=True):
        assert torch.equal(tensor, copy)


def test_fresh_memory_is_there_afterwards() -> None:
    fresh = torch.empty(64 * MIB, dtype=torch.uint8)
    assert resident_pages(fresh) < 1000
    with TouchAhead([fresh]) as touching:
        touching.wait()
    assert resident_pages(fresh) >= 64 * MIB // PAGESIZE - 2


def test_values_written_meanwhile_stay() -> None:
    fresh = torch.empty(64 * MIB, dtype=torch.uint8)
    with TouchAhead([fresh]):
        fresh.fill_(7)
    assert bool((fresh == 7).all())


@pytest.mark.parametrize(
    "tensor",
    [
        torch.empty(0),
        torch.empty(1000),
        torch.empty(4 * MIB, device="meta"),
        torch.empty(2048, 2048).t(),
    ],
    ids=["empty", "small", "meta", "transposed"],
)
def test_what_it_leaves_alone(tensor: torch.Tensor) -> None:
    assert page_ranges([tensor]) == []
    with TouchAhead([tensor]) as touching:
        pass
    assert touching.touched == 0


def test_ranges_lie_inside_and_come_once() -> None:
    tensor = torch.empty(4 * MIB + 12345, dtype=torch.uint8)
    ((begin, length),) = page_ranges([tensor, tensor])
    assert begin % PAGESIZE == length % PAGESIZE == 0
    assert tensor.data_ptr() <= begin
    assert begin + length <= tensor.data_ptr() + tensor.numel()
    assert length > tensor.numel() - 2 * PAGESIZE
