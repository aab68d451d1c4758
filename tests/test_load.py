"""Loading gives just what safetensors gives, bit by bit, whichever way the bytes come."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from samples import assert_same, bits, random_tensor

import sllm
from sllm import _native
from sllm.errors import (
    ChecksumError,
    CorruptCheckpointError,
    LoadCancelledError,
    LoadError,
    OptionError,
)
from sllm.hookspecs import hookimpl
from sllm.interfaces import Device
from sllm.loader import LoadOptions, LoadRecord
from sllm.plugins import manager

METHODS = [
    "auto",
    "map",
    "direct",
    "buffered",
    *(["uring"] if _native.build_info()["uring"] else []),
]


def cold(directory: Path) -> None:
    for file in directory.glob("*.safetensors"):
        _native.evict(str(file))


def stock(directory: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


@pytest.mark.parametrize("evicted", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_equals_safetensors(every_dtype: Path, method: str, evicted: bool) -> None:
    theirs = stock(every_dtype)
    if evicted:
        cold(every_dtype)
    assert_same(sllm.load(every_dtype, options=LoadOptions(method=method)), theirs)


@pytest.mark.parametrize("method", METHODS)
def test_a_prepared_model_equals_its_source(every_dtype: Path, tmp_path: Path, method: str) -> None:
    sllm.convert(every_dtype, tmp_path / "prepared")
    loaded = sllm.load(tmp_path / "prepared", options=LoadOptions(method=method, verify="always"))
    assert_same(loaded, stock(every_dtype))


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9000), min_size=1, max_size=6),
    method=st.sampled_from(METHODS),
    block=st.sampled_from([0, 4096, 8192, 65536]),
)
def test_any_sizes_with_any_block_size(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], method: str, block: int
) -> None:
    file = tmp_path_factory.mktemp("sizes") / "model.safetensors"
    tensors = {f"t{n}": random_tensor(torch.uint8, (size,), n) for n, size in enumerate(sizes)}
    save_file(tensors, file)
    _native.evict(str(file))
    loaded = sllm.load(file, options=LoadOptions(method=method, block_size=block))
    assert_same(loaded, tensors)


@settings(max_examples=40, deadline=None)
@given(picks=st.sets(st.integers(0, 30)), method=st.sampled_from(METHODS))
def test_a_selection_reads_only_itself(every_dtype: Path, picks: set[int], method: str) -> None:
    theirs = stock(every_dtype)
    everything = sorted(theirs)
    names = [everything[n % len(everything)] for n in picks]
    wanted = {name: theirs[name] for name in names}
    with sllm.stream(every_dtype, names=names, options=LoadOptions(method=method)) as loading:
        assert_same({name: loading.tensor(name) for name in names}, wanted)
        record = loading.wait()
    assert record.nbytes == sum(tensor.nbytes for tensor in wanted.values())


@pytest.mark.parametrize(
    ("verify", "method", "compared"),
    [
        ("auto", "buffered", True),
        ("auto", "map", False),
        ("always", "map", True),
        ("never", "buffered", False),
    ],
)
def test_checksums_are_compared_as_asked(
    every_dtype: Path,
    tmp_path: Path,
    records: list[LoadRecord],
    verify: str,
    method: str,
    compared: bool,
) -> None:
    sllm.convert(every_dtype, tmp_path / "prepared")
    sllm.load(tmp_path / "prepared", options=LoadOptions(method=method, verify=verify))
    assert {file.verified for file in records[-1].files} == {compared}


def test_damage_is_found_while_loading_and_names_the_tensor(
    every_dtype: Path, tmp_path: Path
) -> None:
    sllm.convert(every_dtype, tmp_path / "prepared")
    large = sllm.read_checkpoint(tmp_path / "prepared").tensors["large"]
    file = tmp_path / "prepared" / large.file
    with file.open("r+b") as handle:
        handle.seek(large.offset + 1000)
        byte = handle.read(1)[0]
        handle.seek(large.offset + 1000)
        handle.write(bytes([byte ^ 1]))
    cold(tmp_path / "prepared")
    with pytest.raises(ChecksumError, match="large"):
        sllm.load(tmp_path / "prepared", options=LoadOptions(verify="always"))


def test_a_stream_yields_every_tensor_once_in_file_order(every_dtype: Path) -> None:
    with sllm.stream(every_dtype, prefetch_files=1) as loading:
        seen = list(loading)
    assert [name for name, _ in seen] == list(sllm.read_checkpoint(every_dtype).tensors)
    assert_same(dict(seen), stock(every_dtype))


def test_tensors_can_be_taken_in_any_order_with_bounded_prefetch(every_dtype: Path) -> None:
    with sllm.stream(every_dtype, prefetch_files=1) as loading:
        taken = {name: loading.tensor(name) for name in reversed(loading.names)}
    assert_same(taken, stock(every_dtype))


def test_tensors_outlive_the_load(every_dtype: Path) -> None:
    options = LoadOptions(method="buffered")
    with sllm.stream(every_dtype, options=options) as loading:
        large = loading.tensor("large")
    del loading
    assert bits(large) == bits(stock(every_dtype)["large"])


@pytest.mark.parametrize("method", METHODS)
def test_writing_to_a_tensor_never_reaches_the_file(tmp_path: Path, method: str) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(5000)}, file)
    before = file.read_bytes()
    first = sllm.load(file, options=LoadOptions(method=method))
    first["a"].fill_(7)
    assert file.read_bytes() == before
    assert not sllm.load(file)["a"].any()


def misaligned(file: Path) -> dict[str, torch.Tensor]:
    """A valid file whose float tensors start at odd offsets, as other writers may produce."""
    flags, floats = random_tensor(torch.uint8, (3,)), random_tensor(torch.float32, (5,), 1)
    header = json.dumps(
        {
            "flags": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
            "floats": {"dtype": "F32", "shape": [5], "data_offsets": [3, 23]},
        }
    ).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + bits(flags) + bits(floats))
    return {"flags": flags, "floats": floats}


@pytest.mark.parametrize("method", METHODS)
def test_misaligned_tensors_are_copied_not_misread(tmp_path: Path, method: str) -> None:
    theirs = misaligned(tmp_path / "model.safetensors")
    assert_same(sllm.load(tmp_path, options=LoadOptions(method=method)), theirs)


def test_memory_of_a_pool_is_used_again(every_dtype: Path) -> None:
    pool = _native.RegionPool(1 << 30)
    options = LoadOptions(method="buffered")
    tensors = sllm.load(every_dtype, options=options, pool=pool)
    addresses = {t.untyped_storage().data_ptr() for t in tensors.values() if t.numel()}
    del tensors
    assert pool.held_bytes > 0
    again = sllm.load(every_dtype, options=options, pool=pool)
    assert addresses & {t.untyped_storage().data_ptr() for t in again.values() if t.numel()}
    assert_same(again, stock(every_dtype))


class Mirror:
    """A device that is not host memory: it copies, and remembers how often."""

    name = "mirror"

    def __init__(self) -> None:
        self.placed: list[int] = []

    def unavailable(self) -> str | None:
        return None

    def place(self, data: torch.Tensor, device: str) -> torch.Tensor:
        self.placed.append(data.numel())
        return data.clone()

    @hookimpl
    def sllm_devices(self) -> list[Device]:
        return [self]


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    device = Mirror()
    manager().register(device)
    yield device
    manager().unregister(device)


def test_a_device_receives_each_file_once(
    every_dtype: Path, mirror: Mirror, records: list[LoadRecord]
) -> None:
    assert_same(sllm.load(every_dtype, device="mirror:1"), stock(every_dtype))
    assert len(mirror.placed) == 2
    assert "place" in {stage.name for stage in records[-1].stages}
    assert records[-1].device == "mirror:1"


def test_an_unavailable_device_says_why(every_dtype: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(OptionError, match="no CUDA device"):
        sllm.load(every_dtype, device="cuda")


def test_the_record_tells_what_happened(every_dtype: Path, records: list[LoadRecord]) -> None:
    sllm.load(every_dtype, options=LoadOptions(method="buffered"))
    (record,) = records
    assert record.error is None
    assert record.nbytes == sllm.read_checkpoint(every_dtype).nbytes
    assert {file.method for file in record.files} == {"buffered"}
    assert all(file.reason for file in record.files)
    assert record.source == "file"
    assert json.loads(json.dumps(record.as_dict()))["bottleneck"] in {"allocate", "read", "verify"}


def test_records_are_appended_to_the_named_file(
    every_dtype: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "records.jsonl"
    monkeypatch.setenv("SLLM_RECORDS", str(log))
    sllm.load(every_dtype)
    sllm.load(every_dtype)
    assert [json.loads(line)["model"] for line in log.read_text().splitlines()] == [
        str(every_dtype)
    ] * 2


def test_a_failing_observer_does_not_fail_the_load(
    every_dtype: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        @hookimpl
        def sllm_load_finished(self) -> None:
            raise RuntimeError("observer out of order")

    broken = Broken()
    manager().register(broken, "broken")
    try:
        assert_same(sllm.load(every_dtype), stock(every_dtype))
    finally:
        manager().unregister(broken)
    assert "load observer 'broken' failed" in caplog.text


def test_progress_ends_at_the_total(every_dtype: Path) -> None:
    seen: list[tuple[int, int]] = []
    sllm.load(every_dtype, progress=lambda done, total: seen.append((done, total)))
    total = sllm.read_checkpoint(every_dtype).nbytes
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_leaving_early_cancels(every_dtype: Path, records: list[LoadRecord]) -> None:
    with sllm.stream(every_dtype, prefetch_files=1) as loading:
        pass
    assert records[-1].error == "closed before the end"
    with pytest.raises(LoadCancelledError):
        loading.wait()


def test_a_bounded_stream_hands_each_file_out_once(every_dtype: Path) -> None:
    with sllm.stream(every_dtype, prefetch_files=1) as loading:
        names = [name for name, _ in loading]
        with pytest.raises(LoadError, match="handed out already"):
            loading.tensor(names[0])


def test_cancel_reaches_whoever_waits(every_dtype: Path) -> None:
    with sllm.stream(every_dtype, prefetch_files=1) as loading:
        loading.cancel()
        with pytest.raises(LoadCancelledError):
            loading.wait()


def test_a_file_cut_after_its_header_was_read(every_dtype: Path, tmp_path: Path) -> None:
    for method in METHODS:
        file = tmp_path / f"{method}.safetensors"
        save_file({"a": torch.arange(100_000)}, file)
        checkpoint = sllm.read_checkpoint(file)
        with file.open("r+b") as handle:
            handle.truncate(checkpoint.nbytes - 4096)
        from sllm.builtin.devices import CpuDevice
        from sllm.loader.loading import Loading
        from sllm.loader.plan import make_plan

        loading = Loading(
            make_plan(checkpoint),
            model=str(file),
            source="file",
            device=CpuDevice(),
            options=LoadOptions(method=method),
        )
        with loading, pytest.raises((LoadError, CorruptCheckpointError), match=str(file)):
            loading.wait()


def test_unknown_names_and_options_are_refused(every_dtype: Path) -> None:
    with pytest.raises(OptionError, match="no tensor 'absent'"):
        sllm.load(every_dtype, names=["absent"])
    with pytest.raises(OptionError, match="unknown load method 'teleport'"):
        LoadOptions(method="teleport")
    with pytest.raises(OptionError, match="not a multiple of 4096"):
        LoadOptions(block_size=1000)
    with pytest.raises(OptionError, match="threads must be"):
        LoadOptions(threads=-1)
    with pytest.raises(OptionError, match="no source tier reads gopher"):
        sllm.load("gopher://host/model")
