"""The `transformers` engine as the router sees it; no process is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sllm.errors import OptionError
from sllm.interfaces import Engine, LaunchRequest
from sllm.plugins import named


def launch(**options: str) -> list[str]:
    engine = named("sllm_engines", "transformers")
    assert isinstance(engine, Engine)
    return list(engine.launch(LaunchRequest("m", Path("/x"), "127.0.0.1", 5, options)).argv)


def test_command_line() -> None:
    argv = launch(dtype="float32", trust_remote_code="true")
    assert argv[:4] == [sys.executable, "-m", "sllm_transformers.server", "/x"]
    assert argv[4:10] == ["--host", "127.0.0.1", "--port", "5", "--served-model-name", "m"]
    assert argv[10:] == ["--dtype", "float32", "--trust-remote-code"]
    assert "--trust-remote-code" not in launch(trust_remote_code="false")


def test_unknown_option_names_the_known_ones() -> None:
    with pytest.raises(OptionError, match="dtype, device, threads, trust-remote-code"):
        launch(colour="red")


def test_looking_at_the_engine_imports_no_framework() -> None:
    code = (
        "import sys; from sllm.plugins import named; e = named('sllm_engines', 'transformers')\n"
        "e.unavailable(); e.capabilities()\n"
        "print({'torch', 'transformers', 'fastapi'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
