"""What sllm itself gets from this component: an engine the router can start."""

from __future__ import annotations

from collections.abc import Iterable

from sllm.hookspecs import hookimpl
from sllm.interfaces import Engine
from sllm_vllm.engine import VllmEngine


@hookimpl
def sllm_engines() -> Iterable[Engine]:
    return [VllmEngine()]
