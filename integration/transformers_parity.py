"""Load the same thing the stock way and through sllm, and compare everything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

import sllm_transformers
from sllm.hookspecs import hookimpl
from sllm.loader.base import LoadRecord
from sllm.plugins import manager

T = TypeVar("T")


@contextmanager
def observed_loads() -> Iterator[list[LoadRecord]]:
    """The records of loads that went through sllm meanwhile, as the hook reports them."""
    seen: list[LoadRecord] = []

    class Observer:
        @hookimpl
        def sllm_load_finished(self, record: LoadRecord) -> None:
            seen.append(record)

    observer = Observer()
    manager().register(observer)
    try:
        yield seen
    finally:
        manager().unregister(observer)


def load_both(load: Callable[[], T], **options: Any) -> tuple[T, T]:
    """What `load` returns the stock way and through sllm; proves that each went its way."""
    with observed_loads() as records:
        stock = load()
        assert not records
        with sllm_transformers.enabled(**options):
            ours = load()
        assert records, "the load did not go through sllm"
        assert [record.error for record in records] == [None] * len(records)
    return stock, ours


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes, uint8, shape (nbytes,)."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def assert_same_tensor(name: str, stock: torch.Tensor, ours: torch.Tensor) -> None:
    """Same bytes, dtype, shape, strides and device."""
    for what in ("dtype", "shape", "device", "requires_grad"):
        assert getattr(stock, what) == getattr(ours, what), (name, what)
    assert stock.stride() == ours.stride(), name
    if stock.device.type != "meta":
        assert torch.equal(raw(stock), raw(ours)), f"{name} differs"


def ties(model: torch.nn.Module) -> set[frozenset[str]]:
    """Groups of parameter names that share memory."""
    groups: dict[int, set[str]] = defaultdict(set)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups[parameter.data_ptr()].add(name)
    return {frozenset(group) for group in groups.values() if len(group) > 1}


def assert_same_model(stock: Any, ours: Any) -> None:
    """Same class, parameters, buffers, ties, configs and mode, bit by bit."""
    assert type(stock) is type(ours)
    assert stock.training == ours.training
    for pairs in ("named_parameters", "named_buffers"):
        mine = dict(getattr(ours, pairs)(remove_duplicate=False))
        theirs = dict(getattr(stock, pairs)(remove_duplicate=False))
        assert list(mine) == list(theirs)
        for name, tensor in theirs.items():
            assert_same_tensor(name, tensor, mine[name])
    assert list(stock.state_dict()) == list(ours.state_dict())
    assert ties(stock) == ties(ours)
    assert stock.config.to_dict() == ours.config.to_dict()
    if stock.can_generate():
        assert stock.generation_config.to_dict() == ours.generation_config.to_dict()


def assert_same_info(stock: dict[str, Any], ours: dict[str, Any]) -> None:
    """Same `output_loading_info`."""
    assert {key: sorted(map(str, value)) for key, value in stock.items()} == {
        key: sorted(map(str, value)) for key, value in ours.items()
    }


@torch.no_grad()
def assert_same_logits(stock: Any, ours: Any) -> None:
    """Bit-equal outputs on the same tokens."""
    ids = torch.arange(2, 34).reshape(2, 16)
    theirs, mine = stock(input_ids=ids)[0], ours(input_ids=ids)[0]
    assert torch.isfinite(theirs).all()
    assert torch.equal(theirs, mine)
