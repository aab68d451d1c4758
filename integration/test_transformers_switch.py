"""Switching on and off: calls, blocks, threads, environment variables, import order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers_parity import observed_loads

import sllm_transformers
from sllm.errors import OptionError
from sllm_bench.models import make_model

STOCK = PreTrainedModel.__dict__["_load_pretrained_model"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("switch") / "model", "llama")


@pytest.fixture(autouse=True)
def switched_off() -> Iterator[None]:
    yield
    sllm_transformers.disable()
    assert PreTrainedModel.__dict__["_load_pretrained_model"] is STOCK


def loads_through_sllm(model: Path) -> bool:
    """Whether a load here and now goes through sllm."""
    with observed_loads() as records:
        AutoModelForCausalLM.from_pretrained(model)
    return bool(records)


def test_enable_and_disable(model: Path) -> None:
    assert not sllm_transformers.is_enabled()
    sllm_transformers.enable()
    assert sllm_transformers.is_enabled()
    assert loads_through_sllm(model)
    sllm_transformers.disable()
    assert not sllm_transformers.is_enabled()
    assert not loads_through_sllm(model)


def test_twice_is_once(model: Path) -> None:
    sllm_transformers.enable()
    sllm_transformers.enable()
    with observed_loads() as records:
        AutoModelForCausalLM.from_pretrained(model)
    assert len(records) == 1
    sllm_transformers.disable()
    sllm_transformers.disable()
    assert not loads_through_sllm(model)


def test_blocks_nest_and_the_innermost_options_count(model: Path) -> None:
    with observed_loads() as records:
        with sllm_transformers.enabled(method="buffered"):
            AutoModelForCausalLM.from_pretrained(model)
            with sllm_transformers.enabled(method="map"):
                AutoModelForCausalLM.from_pretrained(model)
            AutoModelForCausalLM.from_pretrained(model)
        AutoModelForCausalLM.from_pretrained(model)
    assert [record.files[0].method for record in records] == ["buffered", "map", "buffered"]


def test_a_block_ends_with_an_exception(model: Path) -> None:
    with pytest.raises(KeyError), sllm_transformers.enabled():
        raise KeyError
    assert not loads_through_sllm(model)
    assert PreTrainedModel.__dict__["_load_pretrained_model"] is STOCK


def test_a_block_inside_enable_does_not_disable(model: Path) -> None:
    sllm_transformers.enable(method="buffered")
    with sllm_transformers.enabled(method="map"):
        pass
    assert loads_through_sllm(model)
    with sllm_transformers.enabled(method="map"):
        sllm_transformers.disable()
        assert loads_through_sllm(model)


def test_a_block_concerns_its_own_thread_only(model: Path) -> None:
    entered, leave = threading.Event(), threading.Event()
    inside: list[bool] = []

    def other() -> None:
        with sllm_transformers.enabled():
            entered.set()
            leave.wait()
            inside.append(loads_through_sllm(model))

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait()
    assert not sllm_transformers.is_enabled()
    with sllm_transformers.enabled():
        pass
    leave.set()
    thread.join()
    assert inside == [True]


def test_loads_in_many_threads(model: Path) -> None:
    sllm_transformers.enable()
    expected = AutoModelForCausalLM.from_pretrained(model).state_dict()
    wrong: list[str] = []

    def load() -> None:
        loaded = AutoModelForCausalLM.from_pretrained(model).state_dict()
        wrong.extend(name for name, t in expected.items() if not torch.equal(t, loaded[name]))

    with observed_loads() as records:
        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert [record.error for record in records] == [None] * 4


@pytest.mark.parametrize(
    ("options", "text"),
    [({"speed": 9}, "use one of method"), ({"method": "warp"}, "warp"), ({"threads": -1}, "-1")],
)
def test_options_are_checked(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        sllm_transformers.enable(**options)
    assert not sllm_transformers.is_enabled()


def test_somebody_elses_wrapper_is_left_in_place(model: Path) -> None:
    sllm_transformers.enable()
    ours = PreTrainedModel.__dict__["_load_pretrained_model"]
    calls: list[str] = []

    def theirs(*args: Any, **kwargs: Any) -> Any:
        calls.append("theirs")
        return ours.__func__(*args, **kwargs)

    PreTrainedModel._load_pretrained_model = staticmethod(theirs)
    try:
        sllm_transformers.disable()
        assert not loads_through_sllm(model)
        assert calls == ["theirs"]
    finally:
        PreTrainedModel._load_pretrained_model = STOCK


LOAD = """
import json, sys
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(json.dumps(float(model.lm_head.weight.double().sum())))
"""


def python(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SLLM_")}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=True,
    )


def records_in(file: Path) -> list[dict[str, Any]]:
    """The load records that a process left."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_environment_variable(model: Path, tmp_path: Path) -> None:
    log = tmp_path / "records"
    stock = python(LOAD, model, SLLM_RECORDS=str(log))
    assert not records_in(log)
    ours = python(LOAD, model, SLLM_RECORDS=str(log), SLLM_TRANSFORMERS="method=buffered")
    assert [r["files"][0]["method"] for r in records_in(log)] == ["buffered"]
    assert ours.stdout == stock.stdout


def test_prefetch_by_environment_variable_is_joined(model: Path, tmp_path: Path) -> None:
    log = tmp_path / "records"
    python(
        LOAD,
        model,
        SLLM_RECORDS=str(log),
        SLLM_TRANSFORMERS="1",
        SLLM_PREFETCH=str(model),
    )
    (record,) = records_in(log)
    assert record["error"] is None
    size = (model / "model.safetensors").stat().st_size
    assert record["nbytes"] == size


def test_prefetch_variable_is_not_inherited(model: Path) -> None:
    code = "import os; print(os.environ.get('SLLM_PREFETCH'))"
    assert python(code, SLLM_PREFETCH=str(model)).stdout == "None\n"


@pytest.mark.parametrize(
    "environment",
    [{"SLLM_TRANSFORMERS": "perhaps"}, {"SLLM_TRANSFORMERS": "speed=9"}, {"SLLM_PREFETCH": "/no"}],
    ids=str,
)
def test_a_wrong_variable_is_reported_and_the_interpreter_starts(
    environment: dict[str, str],
) -> None:
    done = python("print('alive')", **environment)
    assert done.stdout == "alive\n"
    assert "SLLM_" in done.stderr or "not enabled" in done.stderr


@pytest.mark.parametrize("value", ["", "0", "off"])
def test_variable_says_no(value: str) -> None:
    code = "import sllm_transformers; print(sllm_transformers.is_enabled())"
    assert python(code, SLLM_TRANSFORMERS=value).stdout == "False\n"


def test_without_variables_nothing_is_imported() -> None:
    code = "import sys; print([m for m in sys.modules if m.startswith('sllm')])"
    assert python(code).stdout == "[]\n"


def test_enable_before_the_first_import_of_transformers(model: Path, tmp_path: Path) -> None:
    enable = "import sllm_transformers, sys; sllm_transformers.enable()\n"
    check = "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    log = tmp_path / "records"
    python(enable + check + LOAD, model, SLLM_RECORDS=str(log))
    assert len(records_in(log)) == 1


def test_block_around_the_first_import_of_transformers(model: Path, tmp_path: Path) -> None:
    code = f"""
import sllm_transformers
with sllm_transformers.enabled():
    exec({LOAD!r})
from transformers import PreTrainedModel
assert not hasattr(PreTrainedModel._load_pretrained_model, "__sllm_original__")
"""
    log = tmp_path / "records"
    python(code, model, SLLM_RECORDS=str(log))
    assert len(records_in(log)) == 1


def test_forked_child_of_a_prefetching_process_loads(model: Path, tmp_path: Path) -> None:
    """The read belongs to the parent: the child must neither wait for it nor end it."""
    code = f"""
import os, sys, sllm, sllm_transformers
sllm.prefetch(sys.argv[1])
sllm_transformers.enable()
child = os.fork()
exec({LOAD!r})
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    done = python(code, model, SLLM_RECORDS=str(tmp_path / "records"))
    assert len(set(done.stdout.split())) == 1
    assert [r["error"] for r in records_in(tmp_path / "records")] == [None, None]
