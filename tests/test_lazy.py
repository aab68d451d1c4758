"""`sllm.open` looks without reading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import assert_same, bits

import sllm
from sllm import _native
from sllm.errors import OptionError


def test_names_shapes_and_dtypes_need_no_bytes(every_dtype: Path) -> None:
    with sllm.open(every_dtype) as lazy:
        assert set(lazy) == set(lazy.keys()) == set(sllm.read_checkpoint(every_dtype).names)
        assert len(lazy) == len(lazy.keys())
        assert lazy.shape("large") == (1500, 1777)
        assert lazy.dtype("large") == torch.bfloat16
        assert "large" in lazy
        assert "absent" not in lazy


def test_everything_equals_safetensors(every_dtype: Path) -> None:
    theirs: dict[str, torch.Tensor] = {}
    for file in every_dtype.glob("*.safetensors"):
        theirs.update(load_file(file))
    with sllm.open(every_dtype) as lazy:
        assert_same({name: lazy[name] for name in lazy}, theirs)
        assert bits(lazy.slice("large", slice(3, 9, 2))) == bits(theirs["large"][3:9:2])
        assert bits(lazy.raw("large")) == bits(theirs["large"])


def test_a_slice_leaves_the_rest_on_disk(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(64 << 20, dtype=torch.uint8)}, file)
    with file.open("rb") as handle:
        import os

        os.fsync(handle.fileno())
    _native.evict(str(file))
    if _native.residency(str(file)) > 0.1:
        pytest.skip("this file system keeps its pages in memory")
    with sllm.open(file) as lazy:
        lazy.slice("a", slice(0, 10))
    assert _native.residency(str(file)) < 0.5


def test_an_unknown_name_is_refused(every_dtype: Path) -> None:
    with sllm.open(every_dtype) as lazy, pytest.raises(OptionError, match="no tensor 'absent'"):
        _ = lazy["absent"]
