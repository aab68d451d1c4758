"""`save`: live tensors to a prepared model, and the same tensors back, sharing what they shared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import assert_agrees
from safetensors import safe_open
from safetensors.torch import load_file, load_model
from samples import DTYPES, assert_same, bits, random_tensor

import sllm
from sllm.checkpoint import Checkpoint, View, convert, read_checkpoint, save, verify
from sllm.errors import CheckpointError, OptionError, UnsupportedFormatError


def round_trip(state: dict[str, torch.Tensor], directory: Path) -> tuple[Checkpoint, Any]:
    """Save, check the files by every means, load, compare bit by bit."""
    checkpoint = save(state, directory)
    assert verify(directory).prepared
    assert_agrees(checkpoint)
    loaded = sllm.load(directory)
    assert_same(loaded, {name: tensor.resolve_conj() for name, tensor in state.items()})
    return checkpoint, loaded


def shares(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors lie in one storage."""
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def test_every_dtype_and_shape(tmp_path: Path) -> None:
    more = [torch.float8_e8m0fnu]
    state = {
        f"{dtype}.{shape}": random_tensor(dtype, shape, seed)
        for seed, dtype in enumerate([*DTYPES, *more])
        for shape in ((), (1,), (3, 7), (2, 0, 3), (4, 4, 4), (0,))
    }
    packed = torch.randint(0, 256, (4, 6), dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    state["f4"] = packed
    checkpoint, _ = round_trip(state, tmp_path / "m")
    assert not checkpoint.views
    assert checkpoint.tensors["f4"].shape == (4, 12)
    assert load_file(tmp_path / "m" / "model.safetensors").keys() == state.keys()


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    weight = torch.randn(100, 64)
    state = {"embed": weight, "other": torch.randn(3), "head": weight}
    checkpoint, loaded = round_trip(state, tmp_path / "m")
    assert checkpoint.views == {"head": View("embed", "F32", (100, 64), (64, 1), 0)}
    assert checkpoint.nbytes < 4096 + weight.nbytes + 100
    assert loaded["head"].data_ptr() == loaded["embed"].data_ptr()
    with safe_open(tmp_path / "m" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "head": "embed"}  # as save_model writes it
    loaded["embed"].zero_()
    assert not loaded["head"].any()


SHARING: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
    "transpose": lambda: {"w": (w := torch.randn(5, 7)), "t": w.t()},
    "slices": lambda: {"a": (w := torch.randn(9, 4)), "b": w[2:5], "c": w[:, 1:3], "d": w[8]},
    "a slice first": lambda: {"b": (w := torch.randn(9, 4))[2:5], "a": w},
    "another dtype": lambda: {"a": (w := torch.randn(6, 4)), "b": w.view(torch.int16)[1:]},
    "wider dtype": lambda: {
        "a": (w := torch.arange(64, dtype=torch.uint8)),
        "b": w.view(torch.int64),
    },
    "complex": lambda: {"a": (w := torch.randn(6, 2)), "b": torch.view_as_complex(w)},
    "expanded": lambda: {"a": (w := torch.randn(1, 5)), "b": w.expand(4, 5)},
    "diagonal": lambda: {"a": (w := torch.randn(5, 5)), "b": w.diagonal()},
    "chain without a cover": lambda: {"a": (w := torch.randn(30))[:20], "b": w[10:], "c": w[5:15]},
    "transposes without a cover": lambda: {"a": (w := torch.randn(4, 6).t()), "b": w[1:3]},
    "tied and viewed": lambda: {"a": (w := torch.randn(4, 6)), "b": w, "c": w.t(), "d": w.t()},
    "tied transposes": lambda: {"a": (w := torch.randn(4, 6).t()), "b": w},
    "0-d of a vector": lambda: {"a": (w := torch.randn(6)), "b": w[4]},
    "4-bit": lambda: {
        "a": (w := torch.arange(24, dtype=torch.uint8).view(4, 6).view(torch.float4_e2m1fn_x2)),
        "b": w,
    },
}  # fmt: skip


@pytest.mark.parametrize("case", SHARING)
def test_what_shared_memory_shares_it_again(case: str, tmp_path: Path) -> None:
    state = SHARING[case]()
    checkpoint, loaded = round_trip(state, tmp_path / "m")
    assert checkpoint.views
    stored = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    first, *rest = loaded.values()
    assert all(shares(first, other) for other in rest)
    assert stored <= next(iter(state.values())).untyped_storage().nbytes()
    assert set(checkpoint.names) == set(state)
    again = convert(tmp_path / "m", tmp_path / "again")
    assert again.views == checkpoint.views
    assert_same(sllm.load(tmp_path / "again"), loaded)


APART: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
    "neighbours in one storage": lambda: {
        "q": (w := torch.randn(9, 4))[:3],
        "k": w[3:6],
        "v": w[6:],
    },
    "a small part of much": lambda: {"a": (w := torch.randn(1000, 9))[:, :1], "b": w[:, 5:6]},
    "equal values": lambda: {"a": torch.ones(4), "b": torch.ones(4)},
    "empty": lambda: {"a": (w := torch.randn(4))[:0], "b": w[2:2], "c": torch.empty(0)},
    "lone transpose": lambda: {"a": torch.randn(4, 6).t()},
    "lone slice": lambda: {"a": torch.randn(40)[3:30:4]},
    "lone expansion": lambda: {"a": torch.randn(1, 3).expand(5, 3)},
    "conjugate": lambda: {"a": (w := torch.randn(4, dtype=torch.complex64)), "b": w.conj()},
    "negated": lambda: {"a": torch.randn(4, dtype=torch.complex64).conj().imag},
    "across the elements": lambda: {
        "a": (w := torch.arange(16, dtype=torch.uint8)).view(torch.int64),
        "b": w[3:7].view(torch.uint8),
        "c": w[1:9].clone().view(torch.int64),
    },
    "mixed dtypes without a cover": lambda: {
        "a": (w := torch.arange(32, dtype=torch.uint8))[:24].view(torch.int64),
        "b": w[8:].view(torch.int16),
    },
}  # fmt: skip


@pytest.mark.parametrize("case", APART)
def test_what_cannot_or_need_not_share_keeps_its_values(case: str, tmp_path: Path) -> None:
    round_trip(APART[case](), tmp_path / "m")


def test_only_memory_that_views_use_is_no_tensor_of_the_model(tmp_path: Path) -> None:
    memory = torch.arange(30)
    checkpoint = save({"a": memory[:20], "b": memory[10:]}, tmp_path / "m")
    assert checkpoint.names == ("a", "b")
    assert sorted(sllm.load(tmp_path / "m")) == ["a", "b"]
    (stored,) = checkpoint.tensors.values()
    assert stored.shape == (30,)


def test_the_view_of_a_view_in_an_expected_place(tmp_path: Path) -> None:
    """Offsets count from the base, not from where the storage starts."""
    memory = torch.arange(100, dtype=torch.int16)
    base = memory[10:60]
    checkpoint, _ = round_trip({"base": base, "part": memory[40:50]}, tmp_path / "m")
    assert checkpoint.views["part"] == View("base", "I16", (10,), (1,), 30)


class Tied(torch.nn.Module):
    """Embedding and head share a parameter; a buffer views it; one buffer is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 6)
        self.head = torch.nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("cache", torch.zeros(5), persistent=False)


def test_modules(tmp_path: Path) -> None:
    module = Tied()
    checkpoint = save(module, tmp_path / "m", config={"model_type": "tied"})
    assert set(checkpoint.names) == {"embed.weight", "head.weight", "scale"}
    assert checkpoint.views["head.weight"].base == "embed.weight"
    assert json.loads((tmp_path / "m" / "config.json").read_text()) == {"model_type": "tied"}
    other = Tied()
    other.load_state_dict(sllm.load(tmp_path / "m"))
    assert torch.equal(other.head.weight, module.embed.weight)
    other = Tied()
    assert load_model(other, tmp_path / "m" / "model.safetensors") == (set(), [])
    assert torch.equal(other.head.weight, module.embed.weight)


def test_engine_order_is_the_modules(tmp_path: Path) -> None:
    state = {name: torch.zeros(64) for name in ("z", "embed", "layers.10", "layers.2")}
    (file,) = save(state, tmp_path / "m").files.values()
    assert [tensor.name for tensor in file.tensors] == list(state)


def test_shards(tmp_path: Path) -> None:
    state = {str(number): torch.full((100,), number) for number in range(7)}
    state["tie"] = state["3"]
    checkpoint = save(state, tmp_path / "m", max_shard_size=1700)
    assert len(checkpoint.files) == 4
    assert_same(sllm.load(tmp_path / "m"), state)
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {str(number) for number in range(7)}


class Odd:
    """Not a tensor."""


class Wrapper(torch.Tensor):
    """A harmless subclass, as nn.Parameter is one."""


REJECTED: dict[str, Callable[[], Any]] = {
    "meta": lambda: torch.zeros(3, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8),
    "complex128": lambda: torch.zeros(3, dtype=torch.complex128),
    "not a tensor": Odd,
    "none": lambda: None,
    "number": lambda: 3.0,
    "released": lambda: (t := torch.zeros(4), t.untyped_storage().resize_(0))[0],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", REJECTED)
def test_what_cannot_be_saved_is_named(case: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFormatError) as error:
        save({"fine": torch.zeros(2), "bad.one": REJECTED[case]()}, tmp_path / "m")
    assert error.value.tensor == "bad.one"
    assert error.value.hint
    assert not list(tmp_path.iterdir())


def test_fake_tensors_have_no_values(tmp_path: Path) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.zeros(3)
    with pytest.raises(UnsupportedFormatError, match="fake"):
        save({"a": fake}, tmp_path / "m")


def test_harmless_subclasses_are_saved(tmp_path: Path) -> None:
    state = {"a": torch.nn.Parameter(torch.randn(3)), "b": torch.randn(3).as_subclass(Wrapper)}
    save(state, tmp_path / "m")
    loaded = sllm.load(tmp_path / "m")
    assert all(bits(loaded[name]) == bits(state[name].detach()) for name in state)


@pytest.mark.parametrize("name", ["__metadata__", "sllm.storage.0", 7, "\ud800"])
def test_impossible_names(name: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFormatError):
        save({name: torch.zeros(2)}, tmp_path / "m")


def test_strange_names_survive(tmp_path: Path) -> None:
    names = ["", " ", "\n", "\0", "a/../b", '"', "\\", "é\u2028😀", "format", "x" * 5000]
    round_trip({name: torch.full((2,), n) for n, name in enumerate(names)}, tmp_path / "m")


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be saved"):
        save([torch.zeros(2)], tmp_path / "m")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="config"):
        save({"a": torch.zeros(2)}, tmp_path / "m", config=7)
    assert not list(tmp_path.iterdir())


def test_nothing_to_save(tmp_path: Path) -> None:
    assert save({}, tmp_path / "m").names == ()
    assert sllm.load(tmp_path / "m") == {}


def test_overwriting(tmp_path: Path) -> None:
    save({"a": torch.zeros(2)}, tmp_path / "m", config={})
    with pytest.raises(CheckpointError, match="exists"):
        save({"b": torch.zeros(2)}, tmp_path / "m")
    save({"b": torch.zeros(2)}, tmp_path / "m", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        "model.safetensors",
        "sllm.json",
    ]
    assert read_checkpoint(tmp_path / "m").names == ("b",)


def test_overwriting_the_files_the_tensors_are_mapped_from(tmp_path: Path) -> None:
    """Loaded tensors map the old files, which stay until nobody uses them."""
    state = {"a": torch.randn(100, 100)}
    save(state, tmp_path / "m")
    loaded = sllm.load(tmp_path / "m")
    save(loaded, tmp_path / "m", overwrite=True)
    assert_same(sllm.load(tmp_path / "m"), state)
    assert_same(loaded, state)
