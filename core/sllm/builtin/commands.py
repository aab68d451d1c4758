"""The commands of the core itself."""

from __future__ import annotations

from collections.abc import Iterable

import click

from sllm.cli import checkpoint, hooks
from sllm.hookspecs import hookimpl


@hookimpl
def sllm_cli_commands() -> Iterable[click.Command]:
    return [checkpoint.convert, checkpoint.inspect, checkpoint.verify, hooks.command]
