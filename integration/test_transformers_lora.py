"""LoRA adapters on top of a model that sllm loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from transformers_parity import (
    assert_same_logits,
    assert_same_model,
    assert_same_tensor,
    load_both,
    observed_loads,
)

import sllm_transformers
from sllm_bench.models import make_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("lora") / "base", "llama")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose every weight is random: a fresh one would change nothing."""
    model = AutoModelForCausalLM.from_pretrained(base)
    peft = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    directory = tmp_path_factory.mktemp("lora") / "adapter"
    peft.save_pretrained(directory)
    return directory


def same_parameters(stock: Any, ours: Any) -> None:
    theirs, mine = dict(stock.named_parameters()), dict(ours.named_parameters())
    assert theirs.keys() == mine.keys()
    for name, tensor in theirs.items():
        assert_same_tensor(name, tensor, mine[name])


def test_peft_model_and_merge(base: Path, adapter: Path) -> None:
    files = {file: file.read_bytes() for file in base.glob("*.safetensors")}

    def load() -> Any:
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)

    stock, ours = load_both(load)
    same_parameters(stock, ours)
    with observed_loads() as records, sllm_transformers.enabled():
        untouched = AutoModelForCausalLM.from_pretrained(base)
    assert records
    stock, ours = stock.merge_and_unload(), ours.merge_and_unload()
    assert_same_model(stock, ours)
    assert_same_logits(stock, ours)
    merged = ours.model.layers[0].self_attn.q_proj.weight
    original = untouched.model.layers[0].self_attn.q_proj.weight
    assert not torch.equal(merged, original)
    assert {file: file.read_bytes() for file in files} == files


def test_load_adapter(base: Path, adapter: Path) -> None:
    def load() -> Any:
        model = AutoModelForCausalLM.from_pretrained(base)
        model.load_adapter(str(adapter))
        return model

    stock, ours = load_both(load)
    same_parameters(stock, ours)
    assert_same_logits(stock, ours)


def test_from_pretrained_of_an_adapter(base: Path, adapter: Path) -> None:
    """transformers finds the base model that the adapter names, and loads both."""
    stock, ours = load_both(lambda: AutoModelForCausalLM.from_pretrained(adapter))
    same_parameters(stock, ours)
    assert_same_logits(stock, ours)
