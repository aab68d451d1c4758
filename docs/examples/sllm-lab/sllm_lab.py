"""A worked sllm plugin: models by nickname, a note of every load, and a command.

`lab://NAME` stands for the directory that the environment variable `LAB_MODELS` gives for NAME:

    LAB_MODELS=tiny=/models/tiny-llama,big=/models/llama-70b
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

import sllm
from sllm.errors import CheckpointNotFoundError
from sllm.interfaces import Source
from sllm.loader.base import LoadRecord


def nicknames() -> dict[str, Path]:
    """Directories by nickname, from `LAB_MODELS`."""
    pairs = (item.partition("=") for item in os.environ.get("LAB_MODELS", "").split(",") if item)
    return {name: Path(path) for name, _, path in pairs}


class LabSource:
    """Serves `lab://NAME`."""

    name = "lab"
    schemes: Sequence[str] = ("lab",)

    def local_path(self, uri: str) -> Path:
        name = uri.removeprefix("lab://")
        known = nicknames()
        if name not in known:
            raise CheckpointNotFoundError(
                f"the lab has no model {name!r}", hint=f"LAB_MODELS names: {', '.join(known)}"
            )
        return known[name]


@sllm.hookimpl
def sllm_sources() -> Iterable[Source]:
    return [LabSource()]


@sllm.hookimpl
def sllm_load_finished(record: LoadRecord) -> None:
    log = os.environ.get("LAB_LOG")
    if log:
        with Path(log).open("a") as file:
            file.write(
                f"{record.model} {record.nbytes} bytes at {record.bandwidth / 1e9:.2f} GB/s\n"
            )


@click.command("lab")
def lab() -> None:
    """List the lab's models."""
    for name, path in nicknames().items():
        click.echo(f"{name}\t{path}")


@sllm.hookimpl
def sllm_cli_commands() -> Iterable[click.Command]:
    return [lab]
