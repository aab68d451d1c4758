"""One safetensors file: what is accepted, what is refused, and how that is said."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
from checkpoint_files import assert_agrees, entry, reference, safetensors_bytes, write
from safetensors import SafetensorError

from sllm.checkpoint import read_checkpoint
from sllm.checkpoint.dtypes import BITS, TORCH_NAMES
from sllm.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedFormatError,
)

A = entry("U8", [4], 0, 4)
ABCD = b"abcd"


def raw_entry(**fields: str) -> str:
    """An entry called a whose fields are given as JSON text."""
    base = {"dtype": '"U8"', "shape": "[4]", "data_offsets": "[0,4]"}
    return '{"a":{' + ",".join(f'"{k}":{v}' for k, v in {**base, **fields}.items()) + "}}"


ACCEPTED = {
    "one tensor": ({"a": A}, ABCD),
    "no tensor": ({}, b""),
    "only metadata": ({"__metadata__": {"x": "y"}}, b""),
    "null metadata": ({"__metadata__": None, "a": A}, ABCD),
    "unordered": ({"b": entry("U8", [2], 2, 4), "a": entry("U8", [2], 0, 2)}, ABCD),
    "0-d": ({"a": entry("F32", [], 0, 4)}, ABCD),
    "empty tensors around": (
        {"y": entry("F32", [0, 3], 4, 4), "a": A, "x": entry("U8", [0], 0, 0)},
        ABCD,
    ),
    "empty of a huge other dimension": ({"a": entry("U8", [0, 1 << 50], 0, 0)}, b""),
    "spaces after": (json.dumps({"a": A}) + "   \n", ABCD),
    "empty name": ({"": A}, ABCD),
    "a name beyond the basic plane": ('{"\\ud83d\\ude00":' + json.dumps(A) + "}", ABCD),
    "4-bit pair": ({"a": entry("F4", [2], 0, 1)}, b"a"),
    "6-bit four": ({"a": entry("F6_E2M3", [4], 0, 3)}, b"abc"),
    "unknown scalar field": (raw_entry(extra='"x"'), ABCD),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted_and_equal_to_safetensors(case: str, tmp_path: Path) -> None:
    header, data = ACCEPTED[case]
    assert_agrees(read_checkpoint(write(tmp_path / "x.safetensors", header, data)))


@pytest.mark.parametrize("dtype", BITS)
def test_every_dtype_of_safetensors(dtype: str, tmp_path: Path) -> None:
    data = bytes(range(BITS[dtype]))
    path = write(tmp_path / "x.safetensors", {"a": entry(dtype, [2, 4], 0, len(data))}, data)
    checkpoint = read_checkpoint(path)
    assert_agrees(checkpoint)
    assert checkpoint.tensors["a"].nbytes == len(data)


def test_no_dtype_of_safetensors_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"a": entry("NO_SUCH", [1], 0, 1)}, b"x")
    with pytest.raises(SafetensorError) as theirs:
        reference(path.read_bytes())
    listed = str(theirs.value).partition("expected one of ")[2].partition(" at line")[0]
    assert {name.strip("` ") for name in listed.split(",")} == set(BITS)


def test_torch_names_are_torch_dtypes_as_safetensors_maps_them(tmp_path: Path) -> None:
    import torch
    from safetensors import safe_open

    for dtype in BITS:
        data = bytes(BITS[dtype])
        path = write(tmp_path / "x.safetensors", {"a": entry(dtype, [8], 0, len(data))}, data)
        with safe_open(path, "pt") as file:
            if dtype in TORCH_NAMES:
                assert file.get_tensor("a").dtype == getattr(torch, TORCH_NAMES[dtype])
            else:
                with pytest.raises(SafetensorError, match="not understood"):
                    file.get_tensor("a")


# name -> (file content, words of the message, tensor, offset)
REFUSED = {
    "empty file": (b"", "empty", None, 0),
    "seven bytes": (b"1234567", "too few", None, 0),
    "header longer than the file": (safetensors_bytes({}, length=100), "truncated", None, 0),
    "header of 2^64-1": (safetensors_bytes({}, length=(1 << 64) - 1), "longer than", None, 0),
    "header over 100 MB": (safetensors_bytes({}, length=100_000_001), "100000000", None, 0),
    "no header": (safetensors_bytes(""), "begin with", None, 8),
    "a list": (safetensors_bytes("[]"), "begin with", None, 8),
    "byte order mark": (safetensors_bytes(b"\xef\xbb\xbf{}"), "begin with", None, 8),
    "not UTF-8": (safetensors_bytes(b'{"\xff":1}'), "UTF-8", None, 10),
    "broken JSON": (safetensors_bytes('{"a":'), "JSON", None, 13),
    "NUL padding": (safetensors_bytes("{}\0"), "JSON", None, 10),
    "NaN": (safetensors_bytes('{"a":NaN}'), "NaN", None, 8),
    "lone surrogate": (safetensors_bytes('{"\\ud800":1}'), "surrogate", None, 8),
    "very deep": (safetensors_bytes('{"a":' + "[" * 9999 + "]" * 9999 + "}"), "deep", None, 8),
    "duplicate name": (
        safetensors_bytes(f'{{"a":{json.dumps(A)},"a":{json.dumps(A)}}}', ABCD),
        "duplicate name 'a'",
        None,
        8,
    ),
    "duplicate name, escaped": (
        safetensors_bytes(f'{{"a":{json.dumps(A)},"\\u0061":{json.dumps(A)}}}', ABCD),
        "duplicate name 'a'",
        None,
        8,
    ),
    "duplicate field": (
        safetensors_bytes(raw_entry().replace('"shape"', '"dtype":"U8","shape"'), ABCD),
        "duplicate name 'dtype'",
        None,
        8,
    ),
    "metadata not text": (safetensors_bytes({"__metadata__": {"x": 1}}), "__metadata__", None, 8),
    "metadata a list": (safetensors_bytes({"__metadata__": []}), "__metadata__", None, 8),
    "entry a list": (safetensors_bytes('{"a":["U8",[4],[0,4]]}', ABCD), "needs dtype", "a", 8),
    "entry a string": (safetensors_bytes('{"a":"U8"}'), "needs dtype", "a", 8),
    "no dtype": (safetensors_bytes({"a": {"shape": [1]}}), "needs dtype", "a", 8),
    "float dimension": (safetensors_bytes(raw_entry(shape="[4.0]"), ABCD), "4.0", None, 8),
    "minus zero": (safetensors_bytes(raw_entry(data_offsets="[-0,4]"), ABCD), "-0", None, 8),
    "negative dimension": (safetensors_bytes(raw_entry(shape="[-4]"), ABCD), "-4", None, 8),
    "bool dimension": (safetensors_bytes(raw_entry(shape="[true,4]"), ABCD), "shape", "a", 8),
    "shape a number": (safetensors_bytes(raw_entry(shape="4"), ABCD), "lists", "a", 8),
    "three offsets": (safetensors_bytes(raw_entry(data_offsets="[0,4,4]"), ABCD), "two", "a", 8),
    "backwards": (safetensors_bytes(raw_entry(data_offsets="[4,0]"), ABCD), "range", "a", 8),
    "offset of thousands of digits": (
        safetensors_bytes(raw_entry(data_offsets=f"[0,{'9' * 9999}]"), ABCD),
        "",
        None,
        8,
    ),
    "dimension over 2^64": (safetensors_bytes(raw_entry(shape=f"[{1 << 64}]")), "shape", "a", 8),
    "product overflows": (
        safetensors_bytes({"a": entry("U8", [1 << 40, 1 << 40, 0], 0, 0)}),
        "larger than any memory",
        "a",
        8,
    ),
    "a dimension too many": (
        safetensors_bytes({"a": entry("U8", [1] * 65, 0, 1)}, b"a"),
        "65 dimensions",
        "a",
        8,
    ),
    "shape too small": (safetensors_bytes(raw_entry(shape="[3]"), ABCD), "takes 3 bytes", "a", 8),
    "shape too large": (safetensors_bytes(raw_entry(shape="[5]"), ABCD), "takes 5 bytes", "a", 8),
    "half a byte": (safetensors_bytes({"a": entry("F4", [3], 0, 2)}, b"ab"), "1.5", "a", 8),
    "overlap": (
        safetensors_bytes({"a": entry("U8", [3], 0, 3), "b": entry("U8", [2], 2, 4)}, ABCD),
        "overlap those of 'a'",
        "b",
        None,
    ),
    "the same bytes twice": (safetensors_bytes({"a": A, "b": A}, ABCD), "overlap", "b", None),
    "hole": (
        safetensors_bytes({"a": entry("U8", [1], 0, 1), "b": entry("U8", [2], 2, 4)}, ABCD),
        "1 bytes between 'a' and it",
        "b",
        None,
    ),
    "hole before": (safetensors_bytes({"a": entry("U8", [3], 1, 4)}, ABCD), "before it", "a", None),
    "empty tensor inside another": (
        safetensors_bytes({"a": A, "b": entry("U8", [0], 2, 2)}, ABCD),
        "overlap",
        "b",
        None,
    ),
    "bytes after": (safetensors_bytes({"a": A}, ABCD + b"e"), "belong to no tensor", None, None),
    "cut": (safetensors_bytes({"a": A}, b"abc"), "truncated", "a", None),
    "out of range": (
        safetensors_bytes({"a": entry("U8", [4], 1 << 40, (1 << 40) + 4)}, ABCD),
        "",
        "a",
        None,
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_file_tensor_offset_and_advice(case: str, tmp_path: Path) -> None:
    raw, words, tensor, offset = REFUSED[case]
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    with pytest.raises(CorruptCheckpointError) as error:
        read_checkpoint(path)
    assert words in str(error.value)
    assert error.value.path == path
    assert error.value.hint
    assert error.value.tensor == tensor
    assert error.value.offset is not None
    if offset is not None:
        assert error.value.offset == offset


def test_messages_stay_readable_whatever_the_names(tmp_path: Path) -> None:
    name = "x" * 1_000_000
    for raw in (
        safetensors_bytes({name: entry("U8", [1], 0, 2)}, b"ab"),
        safetensors_bytes({name: A, "y": A}, ABCD),
        safetensors_bytes(f'{{"{name}":1,"{name}":1}}'),
        safetensors_bytes({"a": entry(name, [1], 0, 1)}, b"a"),
    ):
        (tmp_path / "x.safetensors").write_bytes(raw)
        with pytest.raises(CheckpointError) as error:
            read_checkpoint(tmp_path / "x.safetensors")
        assert len(str(error.value)) < 2000


@pytest.mark.parametrize("dtype", ["C128", "u8", "F6", "", 8, None, ["U8"], {"U8": None}])
def test_unknown_dtypes_are_refused(dtype: object, tmp_path: Path) -> None:
    header = {"a": {"dtype": dtype, "shape": [1], "data_offsets": [0, 1]}}
    with pytest.raises(UnsupportedFormatError, match="unknown dtype") as error:
        read_checkpoint(write(tmp_path / "x.safetensors", header, b"x"))
    assert error.value.tensor == "a"


def test_a_header_of_just_the_limit_is_read(tmp_path: Path) -> None:
    """The limit is safetensors' own: at it both read, one byte above both refuse."""
    for length, fits in ((100_000_000, True), (100_000_001, False)):
        path = tmp_path / "x.safetensors"
        with path.open("wb") as file:
            file.write(struct.pack("<Q", length))
            file.write(b"{}" + b" " * (length - 2))
        if fits:
            assert read_checkpoint(path).tensors == {}
            assert reference(path.read_bytes()) == {}
        else:
            with pytest.raises(CorruptCheckpointError, match="longer than the 100000000"):
                read_checkpoint(path)
            with pytest.raises(SafetensorError, match="too large"):
                reference(path.read_bytes())


@pytest.mark.parametrize(
    ("start", "words"),
    [(b"PK\x03\x04", "zip"), (b"\x80\x02}q\x00", "pickle"), (b"GGUF\x03\0\0\0", "GGUF")],
)
def test_other_formats_are_recognised(start: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(start + os.urandom(100))
    with pytest.raises(UnsupportedFormatError, match=words):
        read_checkpoint(path)


def test_a_real_torch_save_is_refused_unopened(tmp_path: Path) -> None:
    import torch

    torch.save({"a": torch.zeros(3)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsupportedFormatError, match="zip"):
        read_checkpoint(tmp_path / "pytorch_model.bin")


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="no such file"):
        read_checkpoint(tmp_path / "missing.safetensors")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointNotFoundError, match="not a directory"):
        read_checkpoint(tmp_path / "file" / "x.safetensors")
    with pytest.raises(CheckpointError, match="too long"):
        read_checkpoint(tmp_path / ("x" * 300))
    with pytest.raises(CheckpointError, match="not a possible path"):
        read_checkpoint("a\0b")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_checkpoint(tmp_path / "pipe.safetensors")  # and does not wait for a writer
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CheckpointError, match="circle"):
        read_checkpoint(tmp_path / "loop")
