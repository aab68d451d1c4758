"""`convert`: the same tensors, aligned and checksummed, in a directory that appears whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

import google_crc32c
import pytest
import torch
from checkpoint_files import (
    assert_agrees,
    entries,
    entry,
    layered_model,
    names_in,
    tensor_bytes,
    write,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from samples import assert_same

from sllm.checkpoint import convert, read_checkpoint, verify
from sllm.checkpoint.layout import engine_order, parse_size
from sllm.errors import (
    CheckpointError,
    OptionError,
)


def load_all(directory: Path) -> dict[str, torch.Tensor]:
    """What safetensors reads from all files of a directory."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        found.update(load_file(path))
    return found


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    """See `layered_model`."""
    return layered_model(tmp_path / "layers")


def test_every_dtype_survives_bit_by_bit(every_dtype: Path, tmp_path: Path) -> None:
    checkpoint = convert(every_dtype, tmp_path / "out")
    assert checkpoint.prepared
    assert_agrees(checkpoint)
    assert_same(load_all(tmp_path / "out"), load_all(every_dtype))
    assert tensor_bytes(checkpoint) == tensor_bytes(read_checkpoint(every_dtype))


def test_six_bit_floats_survive_too(tmp_path: Path) -> None:
    header = {"a": entry("F6_E3M2", [4], 0, 3), "b": entry("F6_E2M3", [8, 1], 3, 9)}
    source = write(tmp_path / "x.safetensors", header, b"abcdefghi")
    checkpoint = convert(source, tmp_path / "out")
    assert_agrees(checkpoint)
    assert tensor_bytes(checkpoint) == tensor_bytes(read_checkpoint(source))


def test_alignment_and_order(layers: Path, tmp_path: Path) -> None:
    (file,) = convert(layers, tmp_path / "out").files.values()
    assert file.data_offset % 4096 == 0
    whole = [tensor for tensor in file.tensors if tensor.nbytes % 64 == 0]
    odd = [tensor for tensor in file.tensors if tensor.nbytes % 64]
    assert list(file.tensors) == whole + odd
    assert all(tensor.offset % 64 == 0 for tensor in whole)
    assert all(tensor.offset % 2 == 0 for tensor in odd)  # the size of their elements
    assert [tensor.name for tensor in whole] == [f"model.layers.{n}.mlp" for n in range(12)]


def test_elements_are_aligned_whatever_the_sizes(tmp_path: Path) -> None:
    sizes = {"BOOL": 1, "F64": 8, "F32": 4, "BF16": 2, "I64": 8, "U8": 1}
    header, data = {}, b""
    for count in (1, 3, 5, 9, 13):
        for dtype, size in sizes.items():
            begin = len(data)
            data += os.urandom(count * size)
            header[f"{dtype}.{count}"] = entry(dtype, [count], begin, len(data))
    checkpoint = convert(write(tmp_path / "x.safetensors", header, data), tmp_path / "out")
    for tensor in checkpoint.tensors.values():
        assert tensor.offset % sizes[tensor.dtype] == 0, tensor


def test_engine_order_counts() -> None:
    names = ["h.10.w", "h.2.w", "h.2.b", "wte", "10", "9"]
    assert sorted(names, key=engine_order) == ["9", "10", "h.2.b", "h.2.w", "h.10.w", "wte"]


def test_checksums_are_crc32c_of_the_files(layers: Path, tmp_path: Path) -> None:
    (file,) = convert(layers, tmp_path / "out", chunk_size=4096).files.values()
    assert file.checksums is not None
    raw = file.path.read_bytes()
    chunks = [raw[start : start + 4096] for start in range(0, len(raw), 4096)]
    assert len(chunks) > 2
    assert list(file.checksums.crc32c) == [google_crc32c.value(chunk) for chunk in chunks]


def test_the_source_is_named_with_its_checksum(layers: Path, tmp_path: Path) -> None:
    convert(layers, tmp_path / "out")
    source = json.loads((tmp_path / "out" / "sllm.json").read_text())["source"]
    raw = (layers / "model.safetensors").read_bytes()
    assert source == {
        "name": "layers",
        "files": {"model.safetensors": {"size": len(raw), "crc32c": google_crc32c.value(raw)}},
    }


def test_header_metadata_is_kept(layers: Path, tmp_path: Path) -> None:
    convert(layers, tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "who": "me"}


def test_other_tools_need_a_format(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    convert(tmp_path / "x.safetensors", tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("size", [1, "600B", "2KB", "1GiB"])
def test_shards_and_index(size: int | str, layers: Path, tmp_path: Path) -> None:
    checkpoint = convert(layers, tmp_path / "out", max_shard_size=size)
    limit = parse_size(size)
    for file in checkpoint.files.values():
        assert len(file.tensors) == 1 or sum(t.nbytes for t in file.tensors) <= limit
    assert_same(load_all(tmp_path / "out"), load_all(layers))
    index = tmp_path / "out" / "model.safetensors.index.json"
    if len(checkpoint.files) == 1:
        assert not index.exists()
        assert list(checkpoint.files) == ["model.safetensors"]
    else:
        found = json.loads(index.read_text())
        assert found["weight_map"] == {t.name: t.file for t in checkpoint.tensors.values()}
        assert found["metadata"]["total_size"] == sum(
            tensor.nbytes for tensor in checkpoint.tensors.values()
        )
        (tmp_path / "out" / "sllm.json").unlink()  # now as any other tool sees it
        assert tensor_bytes(read_checkpoint(tmp_path / "out")) == tensor_bytes(
            read_checkpoint(layers)
        )


def test_shards_of_the_source_stay(every_dtype: Path, tmp_path: Path) -> None:
    checkpoint = convert(every_dtype, tmp_path / "out")
    assert {name: len(file.tensors) for name, file in checkpoint.files.items()} == {
        name: len(file.tensors) for name, file in read_checkpoint(every_dtype).files.items()
    }
    single = convert(tmp_path / "out", tmp_path / "one", max_shard_size="1TB")
    assert list(single.files) == ["model.safetensors"]
    assert names_in(tmp_path / "one") == {"model.safetensors", "sllm.json"}
    assert_same(load_all(tmp_path / "one"), load_all(every_dtype))


def test_identical_tensors_are_not_merged(tmp_path: Path) -> None:
    save_file({"a": torch.ones(8), "b": torch.ones(8)}, tmp_path / "x.safetensors")
    checkpoint = convert(tmp_path / "x.safetensors", tmp_path / "out")
    assert not checkpoint.views
    assert len(checkpoint.tensors) == 2


def test_no_tensors_at_all(tmp_path: Path) -> None:
    checkpoint = convert(write(tmp_path / "x.safetensors", {}), tmp_path / "out")
    assert checkpoint.prepared
    assert checkpoint.names == ()
    assert verify(tmp_path / "out").chunks == 1


def test_everything_else_travels_along(layers: Path, tmp_path: Path) -> None:
    kept = {
        "tokenizer.json": "{}",
        "generation_config.json": "{}",
        "chat_template.jinja": "x",
        "modeling_mine.py": "x",
        "adapters/first/adapter_model.safetensors": "anything",
        "1_Pooling/config.json": "{}",
        ".gitattributes": "x",
        "adapter_model.bin": "x",
        "ünïcode.txt": "x",
    }
    dropped = {
        "pytorch_model.bin": "x",
        "pytorch_model-00001-of-00002.bin": "x",
        "tf_model.h5": "x",
        "consolidated.safetensors": "x",
        "consolidated.00.pth": "x",
        "model-00001-of-00007.safetensors": "stale",
        ".git/HEAD": "x",
        ".cache/huggingface/x": "x",
        "__pycache__/x.pyc": "x",
    }
    for name, text in {**kept, **dropped}.items():
        (layers / name).parent.mkdir(parents=True, exist_ok=True)
        (layers / name).write_text(text)
    blob = tmp_path / "blob"
    blob.write_text("linked")
    (layers / "vocab.txt").symlink_to(blob)
    (layers / "loop").symlink_to(".")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "file").write_text("x")
    (layers / "folder").symlink_to(tmp_path / "linked")
    os.mkfifo(layers / "pipe")
    (layers / "modeling_mine.py").chmod(0o755)
    convert(layers, tmp_path / "out")
    out = tmp_path / "out"
    assert names_in(out) == {
        *kept, "config.json", "sllm.json", "model.safetensors", "vocab.txt", "folder/file"
    }  # fmt: skip
    for name, text in kept.items():
        assert (out / name).read_text() == text
    assert (out / "vocab.txt").read_text() == "linked"
    assert not (out / "vocab.txt").is_symlink()
    assert os.access(out / "modeling_mine.py", os.X_OK)


def test_from_one_file_only_the_file_is_taken(layers: Path, tmp_path: Path) -> None:
    convert(layers / "model.safetensors", tmp_path / "out")
    assert names_in(tmp_path / "out") == {"model.safetensors", "sllm.json"}


def test_overwriting(layers: Path, every_dtype: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(every_dtype, out)
    before = names_in(out)
    with pytest.raises(CheckpointError, match=r"exists.*overwrite"):
        convert(layers, out)
    assert names_in(out) == before
    convert(layers, out, overwrite=True)
    assert names_in(out) == {"model.safetensors", "sllm.json", "config.json"}
    assert_same(load_all(out), load_all(layers))
    assert entries(tmp_path) == {"layers", "out"}


def test_overwriting_without_a_kernel_that_exchanges(
    layers: Path, every_dtype: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sllm.checkpoint.staging._exchange", lambda one, other: False)
    convert(every_dtype, tmp_path / "out")
    convert(layers, tmp_path / "out", overwrite=True)
    assert_same(load_all(tmp_path / "out"), load_all(layers))
    assert entries(tmp_path) == {"layers", "out"}


def test_an_empty_directory_may_be_used(layers: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert convert(layers, tmp_path / "out").prepared


def test_what_is_no_model_is_never_replaced(layers: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("x")
    with pytest.raises(CheckpointError, match="holds no model"):
        convert(layers, home, overwrite=True)
    with pytest.raises(CheckpointError, match="file is in the way"):
        convert(layers, home / "thesis.tex", overwrite=True)
    assert (home / "thesis.tex").read_text() == "x"


@pytest.mark.parametrize(
    "where", ["layers", "layers/inside", ".", "link", "layers/model.safetensors"]
)
def test_source_and_destination_must_be_apart(where: str, layers: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(layers)
    before = names_in(tmp_path)
    with pytest.raises(OptionError, match="overlap"):
        convert(layers, tmp_path / where, overwrite=True)
    assert names_in(tmp_path) == before


def test_a_destination_behind_a_link_is_replaced_there(layers: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    convert(layers, tmp_path / "disk" / "out")
    (tmp_path / "out").symlink_to("disk/out")
    convert(layers, tmp_path / "out", overwrite=True, max_shard_size="1KB")
    assert (tmp_path / "out").is_symlink()
    assert len(read_checkpoint(tmp_path / "disk" / "out").files) > 1


def test_parents_are_made(layers: Path, tmp_path: Path) -> None:
    assert convert(layers, tmp_path / "a" / "b" / "out").prepared


def test_progress_reaches_the_end(layers: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    checkpoint = convert(
        layers, tmp_path / "out", progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (checkpoint.nbytes, checkpoint.nbytes)
    assert seen == sorted(seen)


@pytest.mark.parametrize("chunk_size", [0, 1, 4095, 4097, 2 << 30, -4096])
def test_impossible_chunk_sizes(chunk_size: int, layers: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="chunk_size"):
        convert(layers, tmp_path / "out", chunk_size=chunk_size)


@pytest.mark.parametrize("size", [0, -1, "", "GB", "5 elephants", "0B", "1e9", True, "9" * 99])
def test_impossible_shard_sizes(size: int | str, layers: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="max_shard_size"):
        convert(layers, tmp_path / "out", max_shard_size=size)


def test_sizes_people_write() -> None:
    assert parse_size("5GB") == 5 * 10**9
    assert parse_size("1.5 GiB") == 3 << 29
    assert parse_size(" 512mb") == 512 * 10**6
    assert parse_size(1234) == parse_size("1234") == 1234
