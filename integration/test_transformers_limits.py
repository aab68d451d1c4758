"""What we do not take over goes down the stock path and says so; what is broken is an error."""

from __future__ import annotations

import json
import logging
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BertConfig, BertModel, LlamaForCausalLM
from transformers_parity import assert_same_model, observed_loads

import sllm
import sllm_transformers
from sllm.errors import ChecksumError, CorruptCheckpointError, SllmError
from sllm_bench.models import make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("limits") / "model", "llama")


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """A model directory that a test may damage."""
    return shutil.copytree(model, tmp_path / "copy")


@pytest.fixture(autouse=True)
def switched_on(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG, logger="sllm_transformers")
    with sllm_transformers.enabled():
        yield


def stock(directory: Path, **options: Any) -> Any:
    """Load without sllm: what the state dict route of transformers gives."""
    state = AutoModelForCausalLM.from_pretrained(directory).state_dict()
    config = AutoModelForCausalLM.from_pretrained(directory).config
    return LlamaForCausalLM.from_pretrained(None, config=config, state_dict=state, **options)


def test_what_is_taken_over_is_said_too(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    AutoModelForCausalLM.from_pretrained(model)
    assert f"loading {model} through sllm" in caplog.text


def test_state_dict(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with observed_loads() as records:
        loaded = stock(model)
    assert len(records) == 2
    assert "handed over as a state dict" in caplog.text
    assert loaded.lm_head.weight.any()


def test_pickle_file(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = AutoModelForCausalLM.from_pretrained(copy)
    torch.save(expected.state_dict(), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with observed_loads() as records:
        loaded = AutoModelForCausalLM.from_pretrained(copy)
    assert not records
    assert "pytorch_model.bin is no safetensors file" in caplog.text
    assert_same_model(expected, loaded)


def test_quantised_model(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    """fp8 weights, which transformers dequantises where there is no GPU."""
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "dequantize": True,
        "weight_block_size": None,
    }
    (copy / "config.json").write_text(json.dumps(config))
    with observed_loads() as records:
        AutoModelForCausalLM.from_pretrained(copy)
    assert not records
    assert "the model is quantised" in caplog.text


def test_disable_mmap(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with observed_loads() as records:
        AutoModelForCausalLM.from_pretrained(model, disable_mmap=True)
    assert not records
    assert "disable_mmap" in caplog.text


def test_more_than_fits_into_memory(
    model: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stock path reads from the mapped file what it uses, when it uses it."""
    expected = AutoModelForCausalLM.from_pretrained(model)
    monkeypatch.setattr("sllm_transformers.reading.available_bytes", lambda: 1000)
    with observed_loads() as records:
        loaded = AutoModelForCausalLM.from_pretrained(model)
        assert not records
        with sllm_transformers.enabled(method="map"):
            AutoModelForCausalLM.from_pretrained(model)
        assert len(records) == 1
    assert "GB of memory are available" in caplog.text
    assert_same_model(expected, loaded)


def test_unknown_remote_model_raises_the_stock_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError) as ours:
        AutoModelForCausalLM.from_pretrained("nobody/has-this-model")
    assert not isinstance(ours.value, SllmError)


def test_model_in_the_hub_cache(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, from the cache of a Hub download: files there are links to blobs."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--somebody--something"
    snapshot = repository / "snapshots" / ("a" * 40)
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    for number, file in enumerate(sorted(model.iterdir())):
        shutil.copy(file, repository / "blobs" / f"{number:040}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:040}")
    with observed_loads() as records:
        loaded = AutoModelForCausalLM.from_pretrained("somebody/something", cache_dir=tmp_path)
    assert len(records) == 1
    expected = AutoModelForCausalLM.from_pretrained(model).state_dict()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_other_files_beside_the_model_do_not_matter(copy: Path) -> None:
    """transformers takes model.safetensors even where an index lies beside it."""
    (copy / "model.safetensors.index.json").write_text('{"weight_map": {"x": "missing"}}')
    save_file({"alien": torch.ones(3)}, copy / "alien.safetensors")
    with observed_loads() as records:
        AutoModelForCausalLM.from_pretrained(copy)
    assert [record.error for record in records] == [None]


def test_truncated_file(copy: Path) -> None:
    file = copy / "model.safetensors"
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size - 1000)
    with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(copy)


def test_overlapping_tensors(copy: Path) -> None:
    file = copy / "model.safetensors"
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    first, second = [name for name in header if name != "__metadata__"][:2]
    header[second]["data_offsets"] = header[first]["data_offsets"]
    header[second]["shape"], header[second]["dtype"] = header[first]["shape"], "F32"
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with pytest.raises(CorruptCheckpointError):
        AutoModelForCausalLM.from_pretrained(copy)


@pytest.mark.parametrize("method", ["auto", "direct", "buffered"])
def test_damaged_prepared_model(model: Path, tmp_path: Path, method: str) -> None:
    """A flipped bit raises our error, not transformers' report of a failed conversion."""
    prepared = tmp_path / "prepared"
    sllm.convert(model, prepared)
    (file,) = prepared.glob("*.safetensors")
    with file.open("r+b") as handle:
        handle.seek(-100, 2)
        byte = handle.read(1)
        handle.seek(-100, 2)
        handle.write(bytes([byte[0] ^ 1]))
    options = {"method": method, "verify": "always"}
    with (
        sllm_transformers.enabled(**options),
        pytest.raises(ChecksumError, match=file.name),
        observed_loads() as records,
    ):
        AutoModelForCausalLM.from_pretrained(prepared)
    assert records[0].error


def test_unknown_transformers_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A transformers whose function we do not know keeps it."""
    from types import ModuleType

    from sllm_transformers import hook

    def load(model: object, files: object) -> None: ...

    class PreTrainedModel:
        _load_pretrained_model = staticmethod(load)

    future = ModuleType("transformers.modeling_utils")
    future.PreTrainedModel = PreTrainedModel  # type: ignore[attr-defined]
    hook.patch(future)
    assert PreTrainedModel._load_pretrained_model is load
    assert "has no argument" in caplog.text
    del PreTrainedModel._load_pretrained_model
    hook.patch(future)
    assert "has no PreTrainedModel._load_pretrained_model" in caplog.text


def test_unusual_dtypes(tmp_path: Path) -> None:
    """Integers, booleans and float64 arrive as transformers itself would read them."""
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        dtype="float64",
    )
    BertModel(config).double().save_pretrained(tmp_path)
    with observed_loads() as records:
        ours = BertModel.from_pretrained(tmp_path, dtype="auto")
    assert records
    assert ours.dtype == torch.float64
