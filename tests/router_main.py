"""The `sllm` command with the tests' own engine installed, as a plugin like any other."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import router_engine

from sllm.cli import main
from sllm.errors import OptionError
from sllm.hookspecs import hookimpl
from sllm.interfaces import Capabilities, Engine, Launch, LaunchRequest
from sllm.plugins import manager


class ScriptedEngine:
    name = "scripted"

    def unavailable(self) -> str | None:
        return None

    def capabilities(self) -> Capabilities:
        return Capabilities(chat=self.name != "mute")

    def launch(self, request: LaunchRequest) -> Launch:
        if unknown := set(request.options) - {"color"}:
            raise OptionError(f"the scripted engine has no option {sorted(unknown)[0]!r}")
        argv = [sys.executable, "-S", str(Path(router_engine.__file__)), str(request.path)]
        return Launch([*argv, request.model, str(request.port)])


class MuteEngine(ScriptedEngine):
    name = "mute"


class BrokenEngine(ScriptedEngine):
    name = "broken"

    def unavailable(self) -> str | None:
        return "its library is not installed"


class Plugin:
    @hookimpl
    def sllm_engines(self) -> Iterable[Engine]:
        return [ScriptedEngine(), MuteEngine(), BrokenEngine()]


if __name__ == "__main__":
    for module in filter(None, os.environ.get("WITHOUT", "").split(",")):
        sys.modules[module] = None  # type: ignore[assignment]  # importing it fails
    manager().register(Plugin())
    main(prog_name="sllm")
