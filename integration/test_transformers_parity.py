"""What from_pretrained returns through sllm is what it returns without, bit by bit."""

from __future__ import annotations

import copy
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
)
from transformers_parity import (
    assert_same_info,
    assert_same_logits,
    assert_same_model,
    load_both,
    observed_loads,
    ties,
)

import sllm
import sllm_transformers
from sllm_bench.models import ARCHITECTURES, make_model

HEADED = {"bert": AutoModelForMaskedLM}


def headed(arch: str) -> Any:
    """The auto class with the head that the checkpoint was made with."""
    return HEADED.get(arch, AutoModelForCausalLM)


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Model directories by architecture and options, each made once."""
    made: dict[Any, Path] = {}

    def get(arch: str, *, prepared: bool = False, **options: Any) -> Path:
        key = (arch, prepared, *sorted(options.items()))
        if key not in made:
            directory = tmp_path_factory.mktemp(arch) / "model"
            if prepared:
                sllm.convert(get(arch, **options), directory)
            else:
                make_model(directory, arch, **options)
                GenerationConfig(temperature=0.7, top_p=0.9, do_sample=True).save_pretrained(
                    directory
                )
            made[key] = directory
        return made[key]

    return get


@pytest.mark.parametrize("prepared", [False, True], ids=["as-is", "prepared"])
@pytest.mark.parametrize("shards", [1, 3], ids=["one-file", "sharded"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture(
    arch: str, shards: int, prepared: bool, model_of: Callable[..., Path]
) -> None:
    directory = model_of(arch, shards=shards, prepared=prepared)
    (stock, stock_info), (ours, info) = load_both(
        lambda: headed(arch).from_pretrained(directory, output_loading_info=True)
    )
    assert_same_model(stock, ours)
    assert_same_info(stock_info, info)
    assert_same_logits(stock, ours)


def test_tied_weights_are_one_memory(model_of: Callable[..., Path]) -> None:
    for prepared in (False, True):
        stock, ours = load_both(
            lambda: AutoModelForCausalLM.from_pretrained(model_of("qwen2", prepared=prepared))  # noqa: B023
        )
        assert {"lm_head.weight", "model.embed_tokens.weight"} in ties(ours)
        assert_same_model(stock, ours)


def test_a_saved_live_model_loads_with_its_ties(
    model_of: Callable[..., Path], tmp_path: Path
) -> None:
    """`sllm.save` stores tied weights once; both names are there again after loading."""
    original = AutoModelForCausalLM.from_pretrained(model_of("qwen2"))
    sllm.save(original, tmp_path)
    original.config.save_pretrained(tmp_path)
    with sllm_transformers.enabled():
        loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert ties(loaded) == ties(original)
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


def test_one_stored_tensor_under_two_names_that_the_model_does_not_tie(
    model_of: Callable[..., Path], tmp_path: Path
) -> None:
    """Stored once, but two weights for the model: writing to one leaves the other alone."""
    original = AutoModelForCausalLM.from_pretrained(model_of("llama"))
    state = dict(original.state_dict())
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    first, second = (f"model.layers.{n}.self_attn.q_proj.weight" for n in range(2))
    state[second] = state[first].t()
    sllm.save(state, tmp_path)
    original.config.save_pretrained(tmp_path)
    assert len(sllm.read_checkpoint(tmp_path).views) == 2
    with sllm_transformers.enabled():
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]), name
        assert tensor.is_contiguous(), name
    before = loaded.model.embed_tokens.weight.detach().clone()
    with torch.no_grad():
        loaded.lm_head.weight.zero_()
    assert torch.equal(loaded.model.embed_tokens.weight, before)


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
@pytest.mark.parametrize("dtype", ["auto", torch.float32, torch.bfloat16, "float16"], ids=str)
def test_dtype(stored: str, dtype: Any, model_of: Callable[..., Path]) -> None:
    directory = model_of("llama", dtype=stored)
    stock, ours = load_both(lambda: AutoModelForCausalLM.from_pretrained(directory, dtype=dtype))
    assert_same_model(stock, ours)


@pytest.mark.parametrize("arch", ["llama", "mixtral"])
@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=str)
def test_device_map(arch: str, device_map: Any, model_of: Callable[..., Path]) -> None:
    directory = model_of(arch, shards=2)
    stock, ours = load_both(
        lambda: AutoModelForCausalLM.from_pretrained(directory, device_map=device_map)
    )
    assert_same_model(stock, ours)
    assert_same_logits(stock, ours)


@pytest.mark.parametrize("arch", ["llama", "mixtral"])
@pytest.mark.parametrize("prepared", [False, True], ids=["as-is", "prepared"])
def test_disk_offload(
    arch: str, prepared: bool, model_of: Callable[..., Path], tmp_path: Path
) -> None:
    directory = model_of(arch, shards=2, prepared=prepared)
    device_map = {
        "model.embed_tokens": "cpu",
        "model.layers.0": "disk",
        "model.layers.1": "cpu",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "disk",
    }
    stock, ours = load_both(
        lambda: AutoModelForCausalLM.from_pretrained(
            directory, device_map=device_map, offload_folder=tmp_path
        )
    )
    assert_same_model(stock, ours)
    assert_same_logits(stock, ours)


def test_disk_offloaded_weights_are_not_read(model_of: Callable[..., Path]) -> None:
    directory = model_of("llama")
    parts = ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head")
    device_map = {**dict.fromkeys(parts, "cpu"), "model.layers.1": "disk"}
    with observed_loads() as records, sllm_transformers.enabled():
        AutoModelForCausalLM.from_pretrained(directory)
        AutoModelForCausalLM.from_pretrained(directory, device_map=device_map)
    whole, part = (record.nbytes for record in records)
    assert part < whole


@pytest.mark.parametrize("arch", ["llama", "gpt2", "bert"])
def test_base_model_from_a_checkpoint_with_a_head(arch: str, model_of: Callable[..., Path]) -> None:
    directory = model_of(arch)

    def load() -> Any:
        torch.manual_seed(0)  # of BERT's pooler, which the checkpoint lacks
        return AutoModel.from_pretrained(directory, output_loading_info=True)

    (stock, stock_info), (ours, info) = load_both(load)
    assert_same_model(stock, ours)
    assert_same_info(stock_info, info)
    assert_same_logits(stock, ours)


@pytest.mark.parametrize("prepared", [False, True], ids=["as-is", "prepared"])
def test_headed_model_from_a_base_checkpoint(
    prepared: bool, model_of: Callable[..., Path], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    AutoModel.from_pretrained(model_of("llama")).save_pretrained(base)
    if prepared:
        sllm.convert(base, tmp_path / "prepared")
        base = tmp_path / "prepared"

    def load() -> Any:
        torch.manual_seed(0)  # of the head that the checkpoint lacks
        return AutoModelForCausalLM.from_pretrained(base, output_loading_info=True)

    (stock, stock_info), (ours, info) = load_both(load)
    assert info["missing_keys"] == {"lm_head.weight"}
    assert_same_info(stock_info, info)
    assert_same_model(stock, ours)


def test_what_the_model_does_not_need_is_not_read(model_of: Callable[..., Path]) -> None:
    directory = model_of("llama")
    with observed_loads() as records, sllm_transformers.enabled():
        whole = AutoModelForCausalLM.from_pretrained(directory)
        AutoModel.from_pretrained(directory)
    head = whole.lm_head.weight.nbytes
    assert records[1].nbytes <= records[0].nbytes - head


def test_missing_and_mismatched_keys_are_reported_alike(
    model_of: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    directory = model_of("bert")

    def load() -> Any:
        torch.manual_seed(0)  # of the classifier that the checkpoint lacks
        return AutoModelForSequenceClassification.from_pretrained(
            directory,
            num_labels=7,
            max_position_embeddings=100,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )

    (stock, stock_info), (ours, info) = load_both(load)
    assert info["mismatched_keys"] and info["missing_keys"] and info["unexpected_keys"]
    assert_same_info(stock_info, info)
    assert_same_model(stock, ours)


def test_mismatched_sizes_raise_the_same_error(model_of: Callable[..., Path]) -> None:
    directory = model_of("bert")
    messages = []
    for through_sllm in (False, True):
        with pytest.raises(RuntimeError) as caught:
            if through_sllm:
                with sllm_transformers.enabled():
                    AutoModel.from_pretrained(directory, max_position_embeddings=100)
            else:
                AutoModel.from_pretrained(directory, max_position_embeddings=100)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_variant_and_subfolder(model_of: Callable[..., Path], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_of("llama"))
    model.save_pretrained(tmp_path / "inner")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.save_pretrained(tmp_path / "inner", variant="zeroed")
    for variant in (None, "zeroed"):
        stock, ours = load_both(
            lambda: AutoModelForCausalLM.from_pretrained(
                tmp_path,
                subfolder="inner",
                variant=variant,  # noqa: B023
            )
        )
        assert_same_model(stock, ours)
        assert bool(ours.lm_head.weight.any()) == (variant is None)


def test_key_mapping(model_of: Callable[..., Path], tmp_path: Path) -> None:
    renamed = tmp_path / "renamed"
    shutil.copytree(model_of("llama"), renamed)
    tensors = load_file(renamed / "model.safetensors")
    old_names = {name.replace("self_attn", "attention"): t for name, t in tensors.items()}
    save_file(old_names, renamed / "model.safetensors", metadata={"format": "pt"})
    (stock, stock_info), (ours, info) = load_both(
        lambda: AutoModelForCausalLM.from_pretrained(
            renamed, key_mapping={"attention": "self_attn"}, output_loading_info=True
        )
    )
    assert not info["missing_keys"]
    assert_same_info(stock_info, info)
    assert_same_model(stock, ours)


@pytest.mark.parametrize("method", ["map", "direct", "buffered", "uring"])
def test_every_read_method(method: str, model_of: Callable[..., Path]) -> None:
    stock, ours = load_both(
        lambda: AutoModelForCausalLM.from_pretrained(model_of("llama", shards=2)), method=method
    )
    assert_same_model(stock, ours)


def test_weights_are_independent(model_of: Callable[..., Path]) -> None:
    """Each weight has a storage and a version of its own, as with the stock loader."""
    with sllm_transformers.enabled():
        model = AutoModelForCausalLM.from_pretrained(model_of("llama"))
    norm, head = model.model.norm.weight, model.lm_head.weight
    versions = head._version
    with torch.no_grad():
        norm.add_(1)
    assert head._version == versions
    assert head.untyped_storage().nbytes() == head.nbytes
    buffer = io.BytesIO()
    torch.save(norm, buffer)
    assert buffer.tell() < 10_000 + norm.nbytes
    assert torch.equal(copy.deepcopy(norm), norm)


def test_training_step_equals_stock(model_of: Callable[..., Path]) -> None:
    stock, ours = load_both(lambda: AutoModelForCausalLM.from_pretrained(model_of("qwen2")))
    ids = torch.arange(2, 34).reshape(2, 16)

    @torch.no_grad()
    def update(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        parameter.add_(parameter.grad, alpha=-0.01)

    for model in (stock, ours):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        # Updating each weight inside backward() needs weights with versions of their own.
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(update)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    assert_same_model(stock, ours)


def test_writing_to_a_model_leaves_the_file_and_other_models_alone(
    model_of: Callable[..., Path],
) -> None:
    directory = model_of("llama")
    file = directory / "model.safetensors"
    before = file.read_bytes()
    for method in ("map", "direct"):
        with sllm_transformers.enabled(method=method):
            first = AutoModelForCausalLM.from_pretrained(directory)
            second = AutoModelForCausalLM.from_pretrained(directory)
        with torch.no_grad():
            for parameter in first.parameters():
                parameter.zero_()
        assert all(bool(parameter.any()) for parameter in second.parameters())
        assert file.read_bytes() == before


def test_saving_a_loaded_model_gives_the_same_file(
    model_of: Callable[..., Path], tmp_path: Path
) -> None:
    with sllm_transformers.enabled():
        model = AutoModelForCausalLM.from_pretrained(model_of("llama"))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (
        model_of("llama") / "model.safetensors"
    ).read_bytes()
