"""`sllm convert`, `sllm verify`, `sllm inspect`."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

from sllm.cli.parameters import MODEL


@click.command("convert")
@click.argument("src", type=MODEL)
@click.argument("dst", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace the model at DST, with every file of it.")
@click.option("--max-shard-size", metavar="SIZE", help="For example 5GB; as in SRC by default.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def convert(
    src: Path, dst: Path, overwrite: bool, max_shard_size: str | None, as_json: bool
) -> None:
    """Write a prepared copy of the model SRC to the directory DST.

    Prepared models are aligned and carry checksums; any other tool still opens them.
    """
    from sllm.checkpoint import convert as run

    with _terminated_like_interrupted(), _progress(f"preparing {src.name}") as progress:
        checkpoint = run(
            src, dst, overwrite=overwrite, max_shard_size=max_shard_size, progress=progress
        )
    if as_json:
        _print_json(
            {
                "path": str(dst),
                "files": {name: file.size for name, file in checkpoint.files.items()},
                "tensors": len(checkpoint.tensors),
                "views": len(checkpoint.views),
                "nbytes": checkpoint.nbytes,
            }
        )
    else:
        click.echo(
            f"{dst}: {len(checkpoint.tensors)} tensors, {_size(checkpoint.nbytes)} "
            f"in {len(checkpoint.files)} file(s)"
        )


@click.command("verify")
@click.argument("path", metavar="DIR", type=MODEL)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def verify(path: Path, as_json: bool) -> None:
    """Check a model: headers, sizes, offsets and, if it is prepared, every byte."""
    from sllm.checkpoint import verify as run

    with _progress(f"verifying {path.name}") as progress:
        report = run(path, progress=progress)
    if as_json:
        _print_json(report.as_dict())
    else:
        click.echo(f"{path}: {report.tensors} tensors, {_size(report.nbytes)}: {report.note}")


@click.command("inspect")
@click.argument("path", metavar="DIR", type=MODEL)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--tensors", is_flag=True, help="List every tensor too.")
def inspect(path: Path, as_json: bool, tensors: bool) -> None:
    """Show what a model's files hold and how they would be read now."""
    from sllm.checkpoint import inspect as run

    found = run(path)
    if as_json:
        _print_json(found)
    else:
        _print_tables(found, tensors)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=True))


def _print_tables(found: dict[str, Any], tensors: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    console = Console()
    kind = "prepared" if found["prepared"] else "not prepared (`sllm convert` does it)"
    alignment = found["alignment"]
    console.print(f"{escape(found['path'])}: {_size(found['nbytes'])}, {kind}", soft_wrap=True)
    console.print(
        f"{alignment['tensors_at_64']} of {alignment['tensors']} tensors at multiples of 64 bytes, "
        f"data {'' if alignment['data_at_4096'] else 'not '}at a multiple of 4 KiB; "
        f"{len(found['views'])} views",
        soft_wrap=True,
    )
    files = Table(
        Column("file", overflow="fold"),
        "size",
        "tensors",
        "checksums",
        "in page cache",
        "read by",
        "file system",
    )
    for file in found["files"]:
        reading = file["reading"]
        resident = reading.get("resident")
        files.add_row(
            escape(file["name"]),
            _size(file["size"]),
            str(file["tensors"]),
            "-" if file["chunks"] is None else str(file["chunks"]),
            "-" if resident is None else f"{resident:.0%}",
            reading["method"] or escape(reading["reason"]),
            reading.get("file_system", "-"),
        )
    console.print(files)
    dtypes = Table("dtype", "tensors", "size")
    for dtype, total in found["dtypes"].items():
        dtypes.add_row(dtype, str(total["tensors"]), _size(total["nbytes"]))
    console.print(dtypes)
    if tensors:
        _print_tensors(found, console.print)


def _print_tensors(found: dict[str, Any], print_: Callable[..., None]) -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table(Column("tensor", overflow="fold"), "dtype", "shape", "file", "offset", "bytes")
    for name, tensor in found["tensors"].items():
        table.add_row(
            escape(name),
            tensor["dtype"],
            str(tensor["shape"]),
            escape(tensor["file"]),
            str(tensor["offset"]),
            str(tensor["nbytes"]),
        )
    for name, view in found["views"].items():
        table.add_row(
            escape(name),
            view["dtype"],
            str(view["shape"]),
            f"view of {escape(view['base'])}",
            "",
            "0",
        )
    print_(table)


def _size(nbytes: int) -> str:
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while work goes on; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM cleans up as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
