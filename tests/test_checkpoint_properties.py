"""For any tensors: reading finds what safetensors wrote, converting and saving lose nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import google_crc32c
import pytest
import torch
from checkpoint_files import assert_agrees, entry, safetensors_bytes, tensor_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from samples import DTYPES, assert_same, bits, random_tensor

import sllm
from sllm.checkpoint import Checkpoint, convert, read_checkpoint, save, verify
from sllm.checkpoint.dtypes import BITS

EXAMPLES = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True, scope="module")
def unsynced() -> Iterator[None]:
    """Hundreds of models are written and removed; waiting for the disk would show nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda name: name != "__metadata__" and not name.startswith("sllm.storage.")
)
shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple)


@st.composite
def states(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Tensors of any dtype and shape, each with memory of its own."""
    described = draw(
        st.dictionaries(names, st.tuples(st.sampled_from(DTYPES), shapes), max_size=12)
    )
    return {
        name: random_tensor(dtype, shape, seed)
        for seed, (name, (dtype, shape)) in enumerate(described.items())
    }


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Any valid file: any dtype of the format, any order, any metadata, any padding."""
    described = draw(st.dictionaries(names, st.tuples(st.sampled_from(list(BITS)), shapes)))
    header: dict[str, object] = {}
    data = b""
    for number, (name, (dtype, shape)) in enumerate(described.items()):
        count = BITS[dtype]
        for dimension in shape:
            count *= dimension
        # Sub-byte dtypes need whole bytes.
        full = [*shape, 8] if count % 8 else list(shape)
        nbytes = count if count % 8 else count // 8
        header[name] = entry(dtype, full, len(data), len(data) + nbytes)
        data += bytes((number + index) % 256 for index in range(nbytes))
    keys = draw(st.permutations(list(header)))
    shuffled = {key: header[key] for key in keys}
    if draw(st.booleans()):
        shuffled["__metadata__"] = draw(st.dictionaries(names, names, max_size=3))
    raw = safetensors_bytes(shuffled, data)
    padding = draw(st.integers(0, 20))
    length = int.from_bytes(raw[:8], "little")
    return (
        (length + padding).to_bytes(8, "little")
        + raw[8 : 8 + length]
        + b" " * padding
        + raw[8 + length :]
    )


@contextmanager
def folder() -> Iterator[Path]:
    """A directory for one example."""
    path = Path(tempfile.mkdtemp())
    try:
        yield path
    finally:
        shutil.rmtree(path)


def assert_prepared(checkpoint: Checkpoint) -> None:
    """Everything the prepared layout promises, and the format demands."""
    assert checkpoint.prepared
    assert_agrees(checkpoint)
    for file in checkpoint.files.values():
        assert file.data_offset % 4096 == 0
        raw = file.path.read_bytes()
        assert file.checksums is not None
        size = file.checksums.chunk_size
        chunks = [raw[start : start + size] for start in range(0, len(raw), size)]
        assert list(file.checksums.crc32c) == [google_crc32c.value(chunk) for chunk in chunks]
        for tensor in file.tensors:
            if tensor.nbytes % 64 == 0:
                assert tensor.offset % 64 == 0
            assert tensor.offset % max(1, BITS[tensor.dtype] // 8) == 0
    assert not [path for path in checkpoint.directory.parent.iterdir() if ".sllm-" in path.name]


@EXAMPLES
@given(states())
def test_read_what_safetensors_wrote(state: dict[str, torch.Tensor]) -> None:
    with folder() as path:
        save_file(state, path / "model.safetensors")
        checkpoint = read_checkpoint(path)
        assert set(checkpoint.names) == set(state)
        raw = (path / "model.safetensors").read_bytes()
        for name, tensor in state.items():
            info = checkpoint.tensors[name]
            assert info.shape == tuple(tensor.shape)
            assert raw[info.offset : info.end] == bits(tensor)


@EXAMPLES
@given(files())
def test_every_valid_file_is_read(raw: bytes) -> None:
    with folder() as path:
        (path / "x.safetensors").write_bytes(raw)
        assert_agrees(read_checkpoint(path / "x.safetensors"))


@EXAMPLES
@given(files(), st.one_of(st.none(), st.integers(1, 3000)), st.sampled_from([4096, 8192, 4 << 20]))
def test_converting_loses_nothing(raw: bytes, shard_size: int | None, chunk_size: int) -> None:
    with folder() as path:
        (path / "x.safetensors").write_bytes(raw)
        source = read_checkpoint(path / "x.safetensors")
        checkpoint = convert(
            path / "x.safetensors", path / "m", max_shard_size=shard_size, chunk_size=chunk_size
        )
        assert_prepared(checkpoint)
        assert tensor_bytes(checkpoint) == tensor_bytes(source)
        assert verify(path / "m").prepared
        again = convert(path / "m", path / "n", chunk_size=chunk_size)
        assert tensor_bytes(again) == tensor_bytes(source)


@st.composite
def sharing_states(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Tensors that are views of a few pieces of memory: slices, transposes, ties, other dtypes."""
    state: dict[str, torch.Tensor] = {}
    for piece in range(draw(st.integers(1, 3))):
        dtype = draw(st.sampled_from([torch.bfloat16, torch.float32, torch.uint8, torch.int64]))
        memory = random_tensor(dtype, (draw(st.integers(1, 6)), draw(st.integers(1, 6))), piece)
        for number in range(draw(st.integers(1, 4))):
            tensor = memory
            for _ in range(draw(st.integers(0, 3))):
                if tensor.dim():
                    tensor = draw(st.sampled_from(CHANGES))(tensor)
            state[f"{piece}.{number}"] = tensor
    return state


CHANGES = [
    lambda t: t.t() if t.dim() == 2 else t,
    lambda t: t[1:],
    lambda t: t[::2],
    lambda t: t[:-1],
    lambda t: t[:, 1:] if t.dim() == 2 else t,
    lambda t: t[0] if t.shape[0] else t,
    lambda t: t.view(torch.uint8) if t.stride(-1) == 1 else t,
    lambda t: t.unsqueeze(0).expand(3, *t.shape) if t.dim() < 3 else t,
    lambda t: t.clone(),
]


@given(sharing_states(), st.one_of(st.none(), st.integers(1, 500)))
@settings(EXAMPLES, max_examples=200)
def test_saving_keeps_values_and_never_stores_a_shared_byte_twice(
    state: dict[str, torch.Tensor], shard_size: int | None
) -> None:
    before = {name: bits(tensor) for name, tensor in state.items()}
    with folder() as path:
        checkpoint = save(state, path / "m", max_shard_size=shard_size)
        assert_prepared(checkpoint)
        assert set(checkpoint.names) == set(state)
        loaded = sllm.load(path / "m")
        assert_same(loaded, state)
        # Written through one name, seen through every other that shares it.
        for name, view in checkpoint.views.items():
            assert loaded[name].untyped_storage().data_ptr() == (
                loaded[view.base].untyped_storage().data_ptr()
                if view.base in loaded
                else loaded[name].untyped_storage().data_ptr()
            )
        del loaded
    assert before == {name: bits(tensor) for name, tensor in state.items()}
    apart = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert sum(tensor.nbytes for tensor in checkpoint.tensors.values()) <= apart


@EXAMPLES
@given(states())
def test_other_tools_open_what_save_writes(state: dict[str, torch.Tensor]) -> None:
    with folder() as path:
        save(state, path / "m")
        with safe_open(path / "m" / "model.safetensors", "pt") as file:
            assert_same({name: file.get_tensor(name) for name in file.keys()}, state)  # noqa: SIM118


@pytest.mark.soak
@settings(EXAMPLES, max_examples=5000)
@given(sharing_states())
def test_sharing_at_length(state: dict[str, torch.Tensor]) -> None:
    with folder() as path:
        save(state, path / "m")
        assert_same(sllm.load(path / "m"), state)
