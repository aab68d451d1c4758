"""Small real models: a true architecture, random weights, a trained tokenizer, no download."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sllm.errors import OptionError
from sllm_bench import corpus

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<s>", "</s>", "<pad>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>", "[MASK]"]
CONTEXT = 2048
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a decoder: hidden units, layers, attention heads, key/value heads, vocabulary."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int


# Heads of 32 or more: vLLM has no attention kernel for smaller ones on a CPU.
SIZES = {
    "tiny": Shape(128, 2, 4, 2, 512),
    "small": Shape(512, 8, 8, 4, 512),
    "200m": Shape(1024, 16, 16, 8, 512),
    "1b": Shape(2048, 18, 32, 8, 32000),
    "1.5b": Shape(2048, 28, 32, 8, 32000),
}


def _decoder(shape: Shape, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.hidden * 11 // 4,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        **more,
    }


def _llama(shape: Shape) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**_decoder(shape))


def _qwen2(shape: Shape) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(**_decoder(shape, tie_word_embeddings=True))


def _qwen3(shape: Shape) -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(**_decoder(shape, head_dim=shape.hidden // shape.heads))


def _mixtral(shape: Shape) -> Any:
    from transformers import MixtralConfig

    return MixtralConfig(**_decoder(shape, num_local_experts=4, num_experts_per_tok=2))


def _opt(shape: Shape) -> Any:
    from transformers import OPTConfig

    return OPTConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        ffn_dim=shape.hidden * 4,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=CONTEXT,
        word_embed_proj_dim=shape.hidden,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


def _gpt2(shape: Shape) -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=shape.vocabulary,
        n_embd=shape.hidden,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_positions=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


def _bert(shape: Shape) -> Any:
    from transformers import BertConfig

    return BertConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.hidden * 4,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=512,
        pad_token_id=2,
    )


ARCHITECTURES: dict[str, Callable[[Shape], Any]] = {
    "llama": _llama,
    "opt": _opt,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gpt2": _gpt2,
    "mixtral": _mixtral,
    "bert": _bert,
}


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the built-in text: any string round-trips."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.training_text(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="[MASK]",
        model_max_length=CONTEXT,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _random_model(config: Any, dtype: str, seed: int) -> PreTrainedModel:
    """Random weights large enough that greedy tokens vary, and without near ties in float32."""
    import torch
    from transformers import AutoModelForCausalLM, BertForMaskedLM

    torch.manual_seed(seed)
    cls = BertForMaskedLM if config.model_type == "bert" else AutoModelForCausalLM
    build = cls if cls is BertForMaskedLM else cls.from_config
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        model: PreTrainedModel = build(config)
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 1.5 / math.sqrt(parameter.shape[-1]))
    return model


def make_model(
    directory: Path,
    arch: str = "llama",
    *,
    dtype: str = "float32",
    size: str = "tiny",
    shards: int = 1,
    seed: int = 0,
) -> Path:
    """Write a Hugging Face model directory with random weights and a trained tokenizer.

    Args:
        directory: created if need be.
        arch: one of `ARCHITECTURES`.
        dtype: one of `DTYPES`.
        size: one of `SIZES`; ``1b`` is about 2 GB and ``1.5b`` about 3 GB in bfloat16.
        shards: about how many safetensors files (1 writes ``model.safetensors`` alone).
        seed: of the weights.

    Returns:
        `directory`.

    Raises:
        OptionError: no such architecture, dtype or size.
    """
    for what, value, known in (
        ("architecture", arch, ARCHITECTURES),
        ("dtype", dtype, DTYPES),
        ("size", size, SIZES),
    ):
        if value not in known:
            raise OptionError(f"unknown {what} {value!r}", hint=f"use one of {', '.join(known)}")
    shape = SIZES[size]
    config = ARCHITECTURES[arch](shape)
    model = _random_model(config, dtype, seed)
    nbytes = sum(p.numel() * p.element_size() for p in model.parameters())
    limit = "1000GB" if shards == 1 else nbytes // shards + 1
    model.save_pretrained(directory, max_shard_size=limit)
    _tokenizer(shape.vocabulary).save_pretrained(directory)
    return directory
