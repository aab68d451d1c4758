"""The command line and environment with which the router starts vLLM."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sllm.errors import EngineError, OptionError
from sllm.interfaces import Engine, LaunchRequest
from sllm.plugins import named
from sllm_vllm import engine as module
from sllm_vllm.engine import VllmEngine

VARIABLES = (
    "VLLM_NO_USAGE_STATS",
    "HF_HUB_OFFLINE",
    "VLLM_CPU_OMP_THREADS_BIND",
    "VLLM_CPU_KVCACHE_SPACE",
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Pretend a vLLM for CPU is installed, wherever the test runs."""
    monkeypatch.setattr(module, "_version", lambda: "0.32.0+cpu")
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    return monkeypatch


def request(path: Path, **options: str) -> LaunchRequest:
    given = {name.replace("_", "-"): value for name, value in options.items()}
    return LaunchRequest("my model", path, "127.0.0.1", 8123, given)


def test_it_is_found_through_the_hook() -> None:
    engine = named("sllm_engines", "vllm")
    assert isinstance(engine, VllmEngine)
    assert isinstance(engine, Engine)


def test_the_command_line(version: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launch = VllmEngine().launch(request(tmp_path, max_model_len="2048"))
    assert list(launch.argv) == [
        *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(tmp_path)),
        *("--served-model-name", "my model", "--host", "127.0.0.1", "--port", "8123"),
        *("--load-format=sllm", "--enforce-eager", "--max-model-len=2048"),
    ]
    assert launch.ready_path == "/health"


def test_defaults_can_be_overridden(version: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launch = VllmEngine().launch(request(tmp_path, load_format="auto", enforce_eager="false"))
    assert "--load-format=auto" in launch.argv
    assert "--no-enforce-eager" in launch.argv
    assert not [word for word in launch.argv if "sllm" in word and word != sys.executable]


def test_underscores_dashes_and_dotted_names(version: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = {"--max_num_seqs": "4", "compilation_config.cudagraph_mode": "NONE", "seed": "-1"}
    asked = LaunchRequest("m", tmp_path, "127.0.0.1", 1, options)
    argv = VllmEngine().launch(asked).argv
    assert "--max-num-seqs=4" in argv
    assert "--compilation-config.cudagraph_mode=NONE" in argv
    assert "--seed=-1" in argv


def test_environment_on_cpu(version: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert dict(VllmEngine().launch(request(tmp_path)).env) == {
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }


def test_environment_on_gpu(version: pytest.MonkeyPatch, tmp_path: Path) -> None:
    version.setattr(module, "_version", lambda: "0.32.0")
    launch = VllmEngine().launch(request(tmp_path))
    assert not [name for name in launch.env if "CPU" in name]
    assert "--enforce-eager" not in launch.argv


def test_what_the_user_set_is_left_alone(version: pytest.MonkeyPatch, tmp_path: Path) -> None:
    version.setenv("VLLM_CPU_KVCACHE_SPACE", "8")
    assert "VLLM_CPU_KVCACHE_SPACE" not in VllmEngine().launch(request(tmp_path)).env
    version.delenv("VLLM_CPU_KVCACHE_SPACE")
    sized = VllmEngine().launch(request(tmp_path, kv_cache_memory_bytes="100M"))
    assert "VLLM_CPU_KVCACHE_SPACE" not in sized.env


@pytest.mark.parametrize("name", ["port", "host", "model", "served_model_name", "--port"])
def test_what_the_router_sets_cannot_be_given(
    name: str, version: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="set by the router"):
        VllmEngine().launch(LaunchRequest("m", tmp_path, "127.0.0.1", 1, {name: "1"}))


@pytest.mark.parametrize("name", ["", "-x", "a b", "a=b", "--", "name;rm"])
def test_a_name_that_is_none_is_refused(
    name: str, version: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="not the name of an option"):
        VllmEngine().launch(LaunchRequest("m", tmp_path, "127.0.0.1", 1, {name: "1"}))


@pytest.mark.parametrize(
    ("found", "version_text", "words"),
    [
        (None, None, "not installed"),
        (object(), None, "without the metadata"),
        (object(), "0.9.2", "too old"),
    ],
)
def test_it_says_why_it_is_unavailable(
    found: object,
    version_text: str | None,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: found)
    monkeypatch.setattr(module, "_version", lambda: version_text)
    assert words in (VllmEngine().unavailable() or "")
    with pytest.raises(EngineError, match=words):
        VllmEngine().launch(request(tmp_path))


def test_asking_imports_neither_vllm_nor_torch() -> None:
    import subprocess

    script = (
        "import sys; from sllm_vllm.engine import VllmEngine; VllmEngine().unavailable();"
        "VllmEngine().capabilities(); sys.exit(bool({'vllm', 'torch'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
