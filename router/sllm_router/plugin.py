"""What the router adds to sllm. Import-light: the server itself is imported by the command."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sllm.hookspecs import hookimpl

if TYPE_CHECKING:
    import click

    from sllm.interfaces import PlacementPolicy


@hookimpl
def sllm_cli_commands() -> Iterable[click.Command]:
    from sllm_router.cli import serve

    return [serve]


@hookimpl
def sllm_placement_policies() -> Iterable[PlacementPolicy]:
    from sllm_router.policies import RandomPolicy, StartupTimePolicy

    return [StartupTimePolicy(), RandomPolicy()]
