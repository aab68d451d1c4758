"""Seconds of vLLM's weight phase by load format: `python -m sllm_bench.vllm_weights DIR`.

Rounds are interleaved, the order rotates, and every load gets fresh memory for its parameters, so
that formats meet the same conditions. Cold rounds begin with the files out of the page cache.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from sllm_bench import vllm_loading
from sllm_bench.load import cache, machine
from sllm_bench.load.model import ModelFiles
from sllm_bench.load.results import spread
from sllm_bench.vllm_loading import FORMATS, Timing, format_named

Samples = dict[str, list[Timing]]

BASELINE = "auto"


def _installed(names: list[str]) -> Iterator[str]:
    for name in names:
        module = format_named(name).module
        if module is None or find_spec(module) is not None:
            yield name
        else:
            click.echo(f"left out: {name} ({module} is not installed)", err=True)


def _skip_packing() -> None:
    """Drop what vLLM does after loading: the same for every format, and longer than loading."""
    from vllm.model_executor.model_loader import base_loader

    base_loader.process_weights_after_loading = lambda *arguments: None


def measure(model: ModelFiles, names: list[str], rounds: int, *, cold: bool) -> Samples:
    """`rounds` loads with each format, interleaved."""
    configs = {
        name: vllm_loading.engine_config(model.directory, format_named(name)) for name in names
    }
    samples: Samples = {name: [] for name in names}
    with vllm_loading.rank_of(configs[names[0]]):
        # The first model of a process also pays for imports; no format shall have to.
        vllm_loading.load_model(configs[names[0]])
        for number in range(rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                if cold:
                    cache.make_cold(model.files, drop_all=False)
                else:
                    cache.make_warm(model.files)
                timing = vllm_loading.load_model(configs[name])
                samples[name].append(timing)
                click.echo(
                    f"round {number} {name}: weights {timing.weights_seconds:.2f} s, "
                    f"total {timing.total_seconds:.2f} s",
                    err=True,
                )
    return samples


def _paired(samples: Samples, name: str) -> float | None:
    """Median over rounds of the baseline's seconds by this format's."""
    if BASELINE not in samples:
        return None
    pairs = zip(samples[BASELINE], samples[name], strict=True)
    return statistics.median(base.weights_seconds / own.weights_seconds for base, own in pairs)


def summarise(samples: Samples, nbytes: int) -> dict[str, Any]:
    """Medians and spreads by format; GB are 10^9 bytes."""
    rows = {}
    for name, timings in samples.items():
        weights = spread([timing.weights_seconds for timing in timings])
        rows[name] = {
            "weights_seconds": weights,
            "total_seconds": spread([timing.total_seconds for timing in timings]),
            "cpu_seconds": spread([timing.cpu_seconds for timing in timings]),
            "gbps": nbytes / 1e9 / weights["median"],
            "times_auto": _paired(samples, name),
            "samples": [asdict(timing) for timing in timings],
        }
    return rows


def print_table(title: str, rows: dict[str, Any]) -> None:
    """To the terminal, the fastest first."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in ("format", "weights s [min..max]", "GB/s", "x auto", "load_model s", "CPU s"):
        table.add_column(column, justify="left" if column == "format" else "right")
    for name, row in sorted(rows.items(), key=lambda item: item[1]["weights_seconds"]["median"]):
        weights = row["weights_seconds"]
        table.add_row(
            name,
            f"{weights['median']:.2f} [{weights['min']:.2f}..{weights['max']:.2f}]",
            f"{row['gbps']:.2f}",
            "-" if row["times_auto"] is None else f"{row['times_auto']:.2f}",
            f"{row['total_seconds']['median']:.2f}",
            f"{row['cpu_seconds']['median']:.2f}",
        )
    Console().print(table)


@click.command()
@click.argument("directory", type=click.Path(exists=True, path_type=Path))
@click.option("--formats", default=",".join(FORMATS), show_default=True, metavar="NAME,...")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--mode", type=click.Choice(["cold", "warm", "both"]), default="both")
@click.option("--packing/--no-packing", default=True, help="Whether vLLM packs weights afterwards.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), metavar="FILE")
def main(
    directory: Path, formats: str, rounds: int, mode: str, packing: bool, json_path: Path | None
) -> None:
    """Compare vLLM's load formats on the model in DIRECTORY."""
    vllm_loading.prepare_environment()
    vllm_loading.fresh_memory()
    model = ModelFiles.open(directory)
    names = list(_installed([name.strip() for name in formats.split(",")]))
    if not packing:
        _skip_packing()
    result: dict[str, Any] = {
        "model": {"name": directory.name, "nbytes": model.nbytes, "files": len(model.files)},
        "machine": machine.describe(directory),
        "packing": packing,
        "modes": {},
    }
    for wanted in ("cold", "warm") if mode == "both" else (mode,):
        samples = measure(model, names, rounds, cold=wanted == "cold")
        rows = result["modes"][wanted] = summarise(samples, model.nbytes)
        print_table(f"{wanted}: {model.nbytes / 1e9:.2f} GB, {rounds} rounds", rows)
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
