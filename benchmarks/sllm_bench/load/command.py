"""`sllm bench load`."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn, cast

import click
from rich.console import Console

from sllm.errors import OptionError
from sllm_bench.load import cache, machine, plot, report, suite
from sllm_bench.load.contenders import resolve
from sllm_bench.load.contenders.base import Mode
from sllm_bench.load.model import ModelFiles
from sllm_bench.load.results import SCHEMA

_WIDTH = 150


def run(
    directory: Path,
    *,
    rounds: int,
    modes: str,
    contenders: tuple[str, ...],
    methods: tuple[str, ...],
    device: str,
    drop_caches: bool,
    seed: int,
    timeout: float,
    json_path: str | None,
    plot_path: Path | None,
    markdown_path: Path | None,
) -> None:
    """Measure, print, write; the exit status is 1 when a contender failed or loaded wrong bytes."""
    if plot_path is not None:
        plot.check()
    if drop_caches and (reason := cache.may_drop()) is not None:
        raise OptionError(
            f"--drop-caches: {reason}", hint="leave it out: files are evicted one by one"
        )
    settings = suite.Settings(
        contenders=resolve(contenders),
        modes=("cold", "warm") if modes == "both" else (cast(Mode, modes),),
        rounds=rounds,
        methods=methods,
        device=device,
        drop_caches=drop_caches,
        seed=seed,
        timeout=timeout,
    )
    model = ModelFiles.open(directory)
    here = machine.describe(model.directory)
    progress = Console(stderr=True)
    with _terminated_like_interrupted(), progress.status("starting") as status:
        outcome = suite.run(
            model, settings, lambda text: status.update(text) if progress.is_terminal else None
        )
    result = report.as_dict(model, settings, outcome, here)
    to_stdout = json_path == "-"
    report.print_table(result, _wide(Console(stderr=to_stdout)))
    if json_path is not None:
        text = json.dumps(result, indent=2)
        if to_stdout:
            click.echo(text)
        else:
            Path(json_path).write_text(text + "\n")
    if markdown_path is not None:
        markdown_path.write_text(report.as_markdown(result))
    if plot_path is not None:
        plot.save(result, plot_path)
    failures = suite.failures(outcome)
    for failure in failures:
        click.echo(f"error: {failure}", err=True)
    if failures:
        sys.exit(1)


def show(path: Path, *, markdown: bool) -> None:
    """Print a saved result.

    Raises:
        OptionError: the file is no such result.
    """
    try:
        result = json.loads(path.read_text())
        schema = result["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise OptionError(
            f"{path} is no result of a measurement",
            hint="sllm bench load DIR --json FILE writes one",
        ) from error
    if schema != SCHEMA:
        raise OptionError(f"{path} has schema {schema}, not {SCHEMA}", hint="measure again")
    if markdown:
        click.echo(report.as_markdown(result), nl=False)
    else:
        report.print_table(result, _wide(Console()))


def _wide(console: Console) -> Console:
    """A file or a pipe has no width: leave room for whole rows."""
    if not console.is_terminal:
        console.width = _WIDTH
    return console


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM shall end workers and remove scratch files, too."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
