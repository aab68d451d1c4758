"""What we write opens in Transformers, and what it writes opens here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from samples import assert_same

import sllm
from sllm.checkpoint import convert, read_checkpoint, save

transformers = pytest.importorskip("transformers")


def llama(*, tied: bool) -> torch.nn.Module:
    """A very small Llama with random weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    model.generation_config.max_new_tokens = 7
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    """One forward pass over fixed tokens."""
    with torch.no_grad():
        return model(torch.arange(12)[None]).logits


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_opens_in_transformers(tied: bool, tmp_path: Path) -> None:
    model = llama(tied=tied)
    checkpoint = save(model, tmp_path / "m")
    assert ("lm_head.weight" in checkpoint.views) is tied
    other, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", output_loading_info=True
    )
    assert not any(info.values()), info
    assert other.dtype == torch.bfloat16
    assert_same(other.state_dict(), model.state_dict())
    assert torch.equal(logits(other), logits(model))
    assert other.generation_config.max_new_tokens == 7
    assert json.loads((tmp_path / "m" / "config.json").read_text())["architectures"] == [
        "LlamaForCausalLM"
    ]
    assert model.config.architectures is None  # the live model's own was not touched
    assert_same(sllm.load(tmp_path / "m"), model.state_dict())


@pytest.mark.parametrize("shard_size", ["20KB", "1GB"])
def test_a_converted_model_opens_in_transformers(shard_size: str, tmp_path: Path) -> None:
    model = llama(tied=True)
    model.save_pretrained(tmp_path / "stock", max_shard_size="10KB")
    convert(tmp_path / "stock", tmp_path / "m", max_shard_size=shard_size)
    other, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", output_loading_info=True
    )
    assert not any(info.values()), info
    assert_same(other.state_dict(), model.state_dict())
    assert (tmp_path / "m" / "generation_config.json").exists()


def test_experts_are_saved_under_their_published_names(tmp_path: Path) -> None:
    """Transformers fuses them in memory; its files, and vLLM, know them one by one."""
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
    )
    model = transformers.MixtralForCausalLM(config).eval()
    save(model, tmp_path / "ours")
    model.save_pretrained(tmp_path / "stock")
    ours, stock = read_checkpoint(tmp_path / "ours"), read_checkpoint(tmp_path / "stock")
    assert set(ours.names) == set(stock.names)
    assert_same(sllm.load(tmp_path / "ours"), sllm.load(tmp_path / "stock"))
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert_same(other.state_dict(), model.state_dict())
