"""`pipeline()` with sllm gives what it gives without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import pipeline
from transformers_parity import assert_same_model, load_both

from sllm_bench.models import make_model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield make_model(tmp_path_factory.mktemp("pipelines") / "llama", "llama", shards=2)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield make_model(tmp_path_factory.mktemp("pipelines") / "bert", "bert")


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_text_generation(llama: Path, dtype: str) -> None:
    stock, ours = load_both(lambda: pipeline("text-generation", str(llama), dtype=dtype))
    assert_same_model(stock.model, ours.model)
    texts = [
        pipe("The weights of a model", max_new_tokens=12, do_sample=False)[0]["generated_text"]
        for pipe in (stock, ours)
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) > len("The weights of a model")


def test_fill_mask(bert: Path) -> None:
    stock, ours = load_both(lambda: pipeline("fill-mask", str(bert)))
    assert_same_model(stock.model, ours.model)
    text = "The [MASK] of a model"
    assert stock(text) == ours(text)


def test_feature_extraction(bert: Path) -> None:
    stock, ours = load_both(
        lambda: pipeline("feature-extraction", str(bert), model_kwargs={"add_pooling_layer": False})
    )
    assert_same_model(stock.model, ours.model)
    text = "The weights of a model"
    assert stock(text) == ours(text)
