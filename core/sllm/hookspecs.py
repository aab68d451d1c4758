"""Every hook of sllm.

Implement one with `sllm.hookimpl`; register through the entry-point group `sllm`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

    from sllm.interfaces import Device, Engine, Estimator, PlacementPolicy, Source
    from sllm.loader.base import LoadRecord

hookspec = pluggy.HookspecMarker("sllm")
hookimpl = pluggy.HookimplMarker("sllm")


@hookspec
def sllm_sources() -> Iterable[Source]:  # type: ignore[empty-body]
    """Source tiers: where models come from, by URI scheme (`file`, later `s3` and others)."""


@hookspec
def sllm_devices() -> Iterable[Device]:  # type: ignore[empty-body]
    """Devices that tensors can be loaded to, by the name before the colon (`cpu`, `cuda`)."""


@hookspec
def sllm_engines() -> Iterable[Engine]:  # type: ignore[empty-body]
    """Serving frameworks that the router can start (`vllm`, `transformers`)."""


@hookspec
def sllm_load_finished(record: LoadRecord) -> None:
    """Called after every load, failed ones too, with what it did; what it raises is logged."""


@hookspec
def sllm_estimators() -> Iterable[Estimator]:  # type: ignore[empty-body]
    """Estimators that learn from loads and starts and predict the next ones."""


@hookspec
def sllm_placement_policies() -> Iterable[PlacementPolicy]:  # type: ignore[empty-body]
    """Policies that decide which instance starts, stops or waits (`startup-time`, `random`)."""


@hookspec
def sllm_cli_commands() -> Iterable[click.Command]:  # type: ignore[empty-body]
    """Sub-commands of the `sllm` command."""
