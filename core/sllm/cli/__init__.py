"""The `sllm` command. Sub-commands come from plugins through the hook `sllm_cli_commands`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import click

from sllm import __version__
from sllm.errors import SllmError


class _Group(click.Group):
    """A group whose commands are whatever the plugins contribute."""

    def _load(self) -> Mapping[str, click.Command]:
        if not self.commands:
            from sllm.plugins import each

            for command in each("sllm_cli_commands"):
                self.add_command(command)
        return self.commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._load())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return self._load().get(cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SllmError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sllm")
@click.option("-v", "--verbose", count=True, help="More log output; twice for debug.")
def main(verbose: int) -> None:
    """Make large language models start as fast as the hardware can move their bytes."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
