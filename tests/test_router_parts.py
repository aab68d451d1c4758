"""The router's pure parts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from router_harness import write_model
from router_main import ScriptedEngine

from sllm.errors import OptionError
from sllm.interfaces import Decision, Estimate, Instance, PlacementPolicy, PlacementState
from sllm.plugins import named
from sllm_router.backoff import LONGEST_SECONDS, Backoff
from sllm_router.forecast import Forecast
from sllm_router.policies import RandomPolicy, StartupTimePolicy
from sllm_router.process import describe_status, tail
from sllm_router.registry import Model, Registry, describe_model, split_name
from sllm_router.sse import LONGEST_HELD, EventGate

instances = st.builds(
    Instance,
    id=st.uuids().map(str),
    model=st.sampled_from("abc"),
    engine=st.just("vllm"),
    running=st.integers(0, 2),
    idle_seconds=st.floats(0, 1e6),
    restart=st.builds(Estimate, mean=st.floats(0, 1e4), upper=st.floats(0, 1e5)),
)
states = st.builds(
    PlacementState,
    model=st.just("new"),
    instances=st.lists(instances, max_size=6),
    capacity=st.integers(1, 6),
)


@pytest.mark.parametrize("policy", [StartupTimePolicy(), RandomPolicy(seed=1)])
@given(state=states)
def test_policies_keep_the_rules(policy: PlacementPolicy, state: PlacementState) -> None:
    decision = policy.decide(state)
    idle = {instance.id for instance in state.instances if instance.running == 0}
    if len(state.instances) < state.capacity:
        assert decision.action == "start"
    elif idle:
        assert decision.action == "evict"
        assert decision.victim in idle
    else:
        assert decision.action == "wait"
    assert decision.reason


def idle(name: str, seconds: float, restart: float) -> Instance:
    return Instance(name, name, "vllm", 0, seconds, Estimate(restart, restart, 1))


def decide(*candidates: Instance) -> Decision:
    return StartupTimePolicy().decide(PlacementState("new", candidates, len(candidates)))


def test_startup_time_evicts_what_is_missed_least() -> None:
    assert decide(idle("dear", 60, 40), idle("cheap", 60, 2)).victim == "cheap"
    assert decide(idle("old", 600, 10), idle("recent", 6, 10)).victim == "old"
    busy = Instance("busy", "busy", "vllm", 1, 0, Estimate(0, 0))
    assert decide(busy, idle("dear", 0, 1000)).victim == "dear"


def test_policies_are_registered_through_the_hook() -> None:
    assert isinstance(named("sllm_placement_policies", "startup-time"), StartupTimePolicy)
    assert isinstance(named("sllm_placement_policies", "random"), RandomPolicy)


@given(st.lists(st.sampled_from([b"data: x", b"\n", b"\n\n", b"\r\n\r\n", b"\r", b"", b"e"])))
def test_the_gate_changes_no_byte_and_passes_whole_events(chunks: list[bytes]) -> None:
    gate = EventGate()
    sent = b""
    for chunk in chunks:
        ready = gate.feed(chunk)
        assert not ready or ready.endswith((b"\n\n", b"\r\n\r\n"))
        sent += ready
    assert sent + gate.rest() == b"".join(chunks)
    assert gate.rest() == b""


def test_the_gate_does_not_hold_for_ever() -> None:
    gate = EventGate()
    assert gate.feed(b"x" * LONGEST_HELD) == b""
    assert len(gate.feed(b"x")) == LONGEST_HELD + 1


def test_backoff_grows_and_forgets() -> None:
    now = [0.0]
    backoff = Backoff(lambda: now[0])
    assert backoff.pending("m") is None
    pauses = []
    for _ in range(10):
        pauses.append(backoff.failed("m", "why"))
        assert backoff.pending("m") == ("why", pauses[-1])
        assert backoff.pending("other") is None
        now[0] += pauses[-1]
        assert backoff.pending("m") is None
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[1], pauses[-1]) == (1, 2, LONGEST_SECONDS)
    backoff.succeeded("m")
    assert backoff.failed("m", "again") == 1


def test_names(tmp_path: Path) -> None:
    odd = tmp_path / "a=b"
    odd.mkdir()
    assert split_name("name=/some/dir") == ("name", "/some/dir")
    assert split_name("/some/dir=x") == (None, "/some/dir=x")
    assert split_name(str(odd)) == (None, str(odd))
    model = describe_model(str(write_model(odd)), ScriptedEngine(), {})
    assert (model.name, model.path) == ("a=b", odd)
    assert model.nbytes == (odd / "model.safetensors").stat().st_size
    assert describe_model(f"{odd}/../a=b/", ScriptedEngine(), {}).name == "a=b"
    with pytest.raises(OptionError, match="two models are called 'a=b'"):
        Registry([model, model])


def test_tail(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert tail(path) == ""
    path.write_bytes(b"".join(b"%d \xff\n" % i for i in range(100_000)))
    lines = tail(path, 3).splitlines()
    assert lines == ["99997 \ufffd", "99998 \ufffd", "99999 \ufffd"]


def test_describe_status() -> None:
    assert describe_status(137) == "signal SIGKILL"
    assert describe_status(3) == "exit status 3"
    assert describe_status(255) == "exit status 255"


class Failing:
    name = "failing"

    def observe(self, kind: str, features: object, seconds: float) -> None:
        raise RuntimeError("cannot learn")

    def predict(self, kind: str, features: object) -> Estimate | None:
        raise RuntimeError("cannot predict")


class Constant(Failing):
    name = "constant"

    def predict(self, kind: str, features: object) -> Estimate | None:
        return Estimate(7.0, 9.0, 1) if kind == "start" else None


def test_a_failing_estimator_does_not_stop_the_others(tmp_path: Path) -> None:
    forecast = Forecast([Constant(), Failing()])
    model = Model("m", tmp_path, ScriptedEngine())
    assert forecast.start(model).mean == 7.0
    forecast.started(model, 1.0)
    assert forecast.load({"tier": "disk", "device": "cpu", "nbytes": 1}) is None


def test_the_plugin_imports_no_server() -> None:
    code = (
        "import sys, sllm_router.plugin as p; p.sllm_cli_commands(); p.sllm_placement_policies(); "
        "print([m for m in ('aiohttp', 'uvicorn', 'fastapi', 'prometheus_client', 'asyncio') "
        "if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
