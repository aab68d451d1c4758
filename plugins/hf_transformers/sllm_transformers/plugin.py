"""What this package contributes to sllm: the engine `transformers`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable

from sllm.errors import OptionError
from sllm.hookspecs import hookimpl
from sllm.interfaces import Capabilities, Engine, Launch, LaunchRequest

_NEEDED = ("torch", "transformers", "fastapi", "uvicorn")
_OPTIONS = ("dtype", "device", "threads")
_FLAGS = ("trust-remote-code",)


class TransformersEngine:
    """Serves a causal language model with `sllm_transformers.server`, one request at a time."""

    name = "transformers"

    def unavailable(self) -> str | None:
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        if not missing:
            return None
        return f"{', '.join(missing)} not installed: pip install 'sllm[transformers,router]'"

    def capabilities(self) -> Capabilities:
        return Capabilities(chat=True, completions=True, token_in=True)

    def launch(self, request: LaunchRequest) -> Launch:
        argv = [sys.executable, "-m", "sllm_transformers.server", str(request.path)]
        argv += ["--host", request.host, "--port", str(request.port)]
        argv += ["--served-model-name", request.model]
        for given, value in request.options.items():
            argv += _arguments(given, value)
        return Launch(argv)


def _arguments(given: str, value: str) -> list[str]:
    """One option on the server's command line.

    Raises:
        OptionError: there is no such option.
    """
    name = given.replace("_", "-")
    if name in _OPTIONS:
        return [f"--{name}", value]
    if name in _FLAGS:
        return [f"--{name}"] if value.lower() in ("", "1", "true", "yes", "on") else []
    raise OptionError(
        f"the transformers engine has no option {given!r}",
        hint=f"use one of {', '.join((*_OPTIONS, *_FLAGS))}",
    )


@hookimpl
def sllm_engines() -> Iterable[Engine]:
    return [TransformersEngine()]
