"""The command line."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from sllm_bench.from_pretrained.suite import LOADERS, MODES, WHATS, Key, Results, run

TITLES = {
    "load": "from_pretrained + touch every page, imports done before",
    "logits": "process start to first logits (sllm: SLLM_TRANSFORMERS=1 SLLM_PREFETCH=DIR)",
}
PARTS = {"load": ("load", "touch"), "logits": ("imports", "load", "forward")}


def table(results: Results, what: str, gigabytes: float) -> Table:
    """Medians, spread, and how many times faster than the stock loader."""
    made = Table(title=f"{TITLES[what]}, {gigabytes:.2f} GB, seconds", title_justify="left")
    for name in ("page cache", "loader", *PARTS[what], "total", "min..max", "speed-up", "cpu"):
        made.add_column(name, justify="left" if name in ("page cache", "loader") else "right")
    for mode in MODES:
        for loader in LOADERS:
            key: Key = (what, mode, loader)
            if key not in results.samples:
                continue
            low, high = results.spread(key, "total")
            total = results.median(key, "total")
            stock = results.median((what, mode, "stock"), "total")
            parts = [f"{results.median(key, part):.3f}" for part in PARTS[what]]
            made.add_row(
                mode,
                loader,
                *parts,
                f"{total:.3f}",
                f"{low:.3f}..{high:.3f}",
                f"{stock / total:.2f}x",
                f"{results.median(key, 'cpu'):.3f}",
            )
    return made


def as_json(results: Results, directory: Path, nbytes: int) -> dict[str, Any]:
    """Everything measured, with what it takes to compare it."""
    import torch
    import transformers

    return {
        "model": directory.name,
        "bytes": nbytes,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "samples": [
            {"what": what, "mode": mode, "loader": loader, "seconds": samples}
            for (what, mode, loader), samples in sorted(results.samples.items())
        ],
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--what", "whats", multiple=True, default=WHATS, type=click.Choice(WHATS))
@click.option("--mode", "modes", multiple=True, default=MODES, type=click.Choice(MODES))
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def main(
    directory: Path,
    rounds: int,
    whats: tuple[str, ...],
    modes: tuple[str, ...],
    json_file: Path | None,
) -> None:
    """Compare from_pretrained with and without sllm on the model in DIRECTORY."""
    console = Console(stderr=True)
    results = run(directory.resolve(), whats=whats, modes=modes, rounds=rounds, told=console.print)
    nbytes = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    for what in dict.fromkeys(whats):
        Console(width=120).print(table(results, what, nbytes / 1e9))
    if json_file is not None:
        json_file.write_text(json.dumps(as_json(results, directory, nbytes), indent=1) + "\n")


if __name__ == "__main__":
    main()
