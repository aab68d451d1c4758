"""`sllm bench`: measurements, and models to make them on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from sllm.hookspecs import hookimpl


def _names(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    """A comma-separated list."""
    return tuple(name.strip() for name in (value or "").split(",") if name.strip())


@click.group("bench")
def bench() -> None:
    """Measure sllm against others on this machine."""


@bench.command("load")
@click.argument("directory", type=click.Path(exists=True, path_type=Path))
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--cold", "modes", flag_value="cold", help="Only with the files out of the page cache."
)
@click.option("--warm", "modes", flag_value="warm", help="Only with the files in the page cache.")
@click.option(
    "--both", "modes", flag_value="both", default="both", help="Cold, then warm (default)."
)
@click.option(
    "--contenders",
    callback=_names,
    metavar="NAME,...",
    help="Who takes part: raw, sllm, safetensors, fastsafetensors, runai, tensorizer, or "
    "module:Class. Default: whoever is installed.",
)
@click.option(
    "--methods",
    callback=_names,
    metavar="NAME,...",
    help="Load methods of sllm to force. Default: all.",
)
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--drop-caches",
    is_flag=True,
    help="Drop the page cache of the whole machine before each cold load (root), "
    "not just the files' pages.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the order within each round."
)
@click.option(
    "--timeout", type=float, default=600.0, show_default=True, help="Seconds one load may take."
)
@click.option("--json", "json_path", metavar="FILE", help="Write everything as JSON; - prints it.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), metavar="FILE.png")
@click.option("--markdown", "markdown_path", type=click.Path(path_type=Path), metavar="FILE.md")
def load(directory: Path, **options: Any) -> None:
    """Load the model in DIRECTORY with every loader, in interleaved rounds.

    What is compared is the time to load and then read one byte of every page, against the raw
    limit: the best plain read (cold) or copy (warm) of the same bytes in the same run, into memory
    that was touched before.
    """
    from sllm_bench.load import command

    command.run(directory, **options)


@bench.command("show")
@click.argument("result", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--markdown", is_flag=True, help="Print Markdown instead of a table.")
def show(result: Path, markdown: bool) -> None:
    """Print a result that `sllm bench load --json` wrote."""
    from sllm_bench.load import command

    command.show(result, markdown=markdown)


@bench.command("make-model")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--arch", default="llama", show_default=True)
@click.option("--size", default="tiny", show_default=True)
@click.option("--dtype", default="bfloat16", show_default=True)
@click.option("--shards", type=click.IntRange(1), default=1, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def make_model(directory: Path, arch: str, size: str, dtype: str, shards: int, seed: int) -> None:
    """Write a real model with random weights and a trained tokenizer to DIRECTORY."""
    from sllm_bench import models

    models.make_model(directory, arch, dtype=dtype, size=size, shards=shards, seed=seed)
    click.echo(directory)


@hookimpl
def sllm_cli_commands() -> Iterable[click.Command]:
    """Contribute `sllm bench`."""
    return [bench]
