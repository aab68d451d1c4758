"""A read started early is taken over by the load that needs it, once, and only if still true."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import sllm
from sllm.loader import LoadRecord
from sllm.loader.prefetching import discard


@pytest.fixture(autouse=True)
def nothing_waits() -> Iterator[None]:
    yield
    discard()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_file({"a": torch.arange(1000)}, tmp_path / "model.safetensors")
    return tmp_path


def test_the_running_read_is_taken_over(model: Path, records: list[LoadRecord]) -> None:
    sllm.prefetch(model)
    assert torch.equal(sllm.load(model)["a"], torch.arange(1000))
    assert len(records) == 1


def test_it_is_found_by_another_spelling_of_the_path(
    model: Path, records: list[LoadRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    sllm.prefetch(model.name)
    sllm.load(model)
    assert len(records) == 1


def test_it_serves_one_load_only(model: Path, records: list[LoadRecord]) -> None:
    sllm.prefetch(model)
    first, second = sllm.load(model)["a"], sllm.load(model)["a"]
    assert len(records) == 2
    first.zero_()
    assert torch.equal(second, torch.arange(1000))


def test_a_model_replaced_meanwhile_is_read_anew(model: Path) -> None:
    sllm.prefetch(model)
    save_file({"a": torch.zeros(1000)}, model / "new")
    (model / "new").rename(model / "model.safetensors")
    assert not sllm.load(model)["a"].any()


def test_a_selection_does_not_take_it(model: Path) -> None:
    sllm.prefetch(model)
    assert torch.equal(sllm.load(model, names=["a"])["a"], torch.arange(1000))
    assert torch.equal(sllm.load(model)["a"], torch.arange(1000))


def test_a_second_prefetch_replaces_the_first(model: Path, records: list[LoadRecord]) -> None:
    sllm.prefetch(model)
    sllm.prefetch(model)
    sllm.load(model)
    discard()
    assert len(records) == 2


def test_a_missing_model_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(sllm.SllmError, match="no such file"):
        sllm.prefetch(tmp_path / "absent")


def test_a_forked_child_reads_for_itself(model: Path) -> None:
    sllm.prefetch(model)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if sllm.load(model) else 1
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert sllm.load(model)


def test_the_record_ends_with_the_last_byte_not_with_the_taking(model: Path) -> None:
    sllm.prefetch(model)
    with sllm.stream(model) as loading:
        loading.wait()
        assert loading.record.seconds == loading._job.stats()[0].finished
