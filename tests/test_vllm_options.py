"""`--model-loader-extra-config`: what is taken, what is refused, and with which words."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm.errors import OptionError
from sllm.loader.base import FileRecord, LoadOptions, LoadRecord, Stage
from sllm_vllm.options import LoaderOptions, for_device, parse, valid_options
from sllm_vllm.report import summary


def test_nothing_given_means_the_defaults() -> None:
    assert parse(None) == parse({}) == LoaderOptions(LoadOptions(), 2)


def test_every_option_is_taken() -> None:
    extra = {
        "method": "direct",
        "verify": "always",
        "threads": 3,
        "queue_depth": 8,
        "block_size": 1 << 20,
        "huge_pages": False,
        "prefetch_files": 5,
    }
    assert set(extra) == set(valid_options())
    expected = LoadOptions("direct", "always", 3, 8, 1 << 20, False)
    assert parse(extra) == LoaderOptions(expected, 5)


def test_an_unknown_option_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(OptionError) as caught:
        parse({"methods": "map"})
    message = str(caught.value)
    assert "'methods'" in message
    assert "did you mean 'method'" in message
    for item in fields(LoadOptions):
        assert item.name in message
    assert "prefetch_files" in message


def test_all_unknown_options_are_named() -> None:
    with pytest.raises(OptionError, match="'distributed', 'pattern'"):
        parse({"pattern": "x", "distributed": True, "threads": 2})


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"method": "mmap"}, "mmap"),
        ({"method": 3}, "method"),
        ({"verify": True}, "verify"),
        ({"threads": "4"}, "threads"),
        ({"threads": True}, "threads"),
        ({"queue_depth": -1}, "queue_depth"),
        ({"block_size": 4095}, "block_size"),
        ({"block_size": 1e6}, "block_size"),
        ({"huge_pages": "yes"}, "huge_pages"),
        ({"huge_pages": 1}, "huge_pages"),
        ({"prefetch_files": -1}, "prefetch_files"),
        ({"prefetch_files": "2"}, "prefetch_files"),
        ({"prefetch_files": False}, "prefetch_files"),
    ],
)
def test_a_wrong_value_is_refused_by_name(extra: dict[str, object], named: str) -> None:
    with pytest.raises(OptionError, match=named):
        parse(extra)


@pytest.mark.parametrize("extra", [[], "method=map", 3, ["method"]])
def test_only_an_object_is_taken(extra: object) -> None:
    with pytest.raises(OptionError, match="must be a JSON object"):
        parse(extra)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(valid_options()) | st.text(max_size=8), JSON) | JSON)
def test_any_json_is_taken_or_refused_in_our_words(extra: object) -> None:
    try:
        options = parse(extra)
    except OptionError as error:
        assert str(error)
    else:
        assert isinstance(options, LoaderOptions)


@pytest.mark.parametrize(
    ("device", "ranks", "method"),
    [("cpu", 1, "map"), ("cpu", 2, "map"), ("cuda", 1, "auto"), ("cuda", 2, "map")],
)
def test_auto_is_settled_by_device_and_ranks(device: str, ranks: int, method: str) -> None:
    assert for_device(LoadOptions(threads=3), device, ranks) == LoadOptions(method, threads=3)


@pytest.mark.parametrize("method", ["map", "uring", "direct", "buffered"])
def test_a_method_the_user_named_is_kept(method: str) -> None:
    options = parse({"method": method}).load
    assert for_device(options, "cpu", 2) == options


def test_the_summary_names_bytes_tier_and_method() -> None:
    files = [
        FileRecord("a.safetensors", 10**9, "map", "", "page-cache", 1.0, 0.1, False),
        FileRecord("b.safetensors", 10**9, "uring", "", "disk", 0.0, 1.0, True),
    ]
    stages = [Stage("allocate", 2 * 10**9, 0.5), Stage("read", 2 * 10**9, 1.0)]
    record = LoadRecord("m", "cpu", 2 * 10**9, 1.0, files, stages)
    assert summary([record], 1.5) == (
        "sllm: 2.000 GB of weights in 1.50 s (1.33 GB/s); "
        "2 files from disk+page-cache by map+uring, readers busy for 1.00 s"
    )


def test_the_summary_of_nothing() -> None:
    assert "0.000 GB" in summary([], 0.0)


def test_plugin_modules_import_no_framework() -> None:
    script = """
import json, sys
import sllm_vllm, sllm_vllm.plugin, sllm_vllm.options, sllm_vllm.registration, sllm_vllm.report
sllm_vllm.register()
heavy = {"torch", "vllm", "transformers", "fastapi", "safetensors", "numpy"}
print(json.dumps(sorted(heavy & set(sys.modules))))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stdout) == []
