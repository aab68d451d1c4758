"""`make demo`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

import sllm
from sllm import _native
from sllm_bench import corpus
from sllm_bench.demo.breakdown import Row, rows
from sllm_bench.demo.serving import ask, served

CONTENDERS = {"sllm": "sllm", "stock": "auto"}


def make(folder: Path, size: str, console: Console) -> Path:
    """A model of that size, made once, prepared once; returns the prepared directory."""
    from sllm_bench.models import make_model

    prepared = folder / f"llama-{size}-prepared"
    if not (prepared / "sllm.json").is_file():
        raw = folder / f"llama-{size}"
        console.print(f"Making a Llama model with random weights in {raw} ...")
        shutil.rmtree(raw, ignore_errors=True)
        make_model(raw, "llama", dtype="bfloat16", size=size)
        console.print(f"Preparing it: sllm convert {raw} {prepared}")
        sllm.convert(raw, prepared, overwrite=True)
    report = sllm.read_checkpoint(prepared)
    console.print(
        f"Prepared model: {prepared} ({len(report.tensors)} tensors, {report.nbytes / 1e6:.0f} MB)"
    )
    return prepared


def start(model: Path, load_format: str, tokens: int, console: Console) -> list[Row]:
    """Serve `model` from cold files, ask once, tell where the time went."""
    checkpoint = sllm.read_checkpoint(model)
    for file in checkpoint.files.values():
        _native.evict(str(file.path))
    question = corpus.prompts()[0]
    options = {"load-format": load_format, "dtype": "bfloat16", "max-model-len": "1024"}
    with tempfile.TemporaryDirectory(prefix="sllm-demo-") as scratch:
        folder = Path(scratch)
        console.print(f"\n[bold]vLLM with --load-format {load_format}[/bold], behind sllm serve")
        console.print(f"[dim]user:[/dim] {question}")
        console.print("[dim]model (its weights are random, so is its answer):[/dim]")
        with served(model, options, folder) as url:
            answer = ask(url, question, tokens)
        return rows(folder, answer, checkpoint.nbytes)


def table(results: dict[str, list[Row]]) -> Table:
    """Phases side by side, in seconds."""
    shown = Table("seconds", *results, "remark", title="Where the start went (one run each)")
    for phases in zip(*results.values(), strict=True):
        remarks = [
            f"{name}: {row.remark}" for name, row in zip(results, phases, strict=True) if row.remark
        ]
        numbers = [f"{row.seconds:.2f}" for row in phases]
        shown.add_row(phases[0].phase, *numbers, "\n".join(remarks))
    return shown


@click.command()
@click.option("--size", default="200m", show_default=True, help="See `sllm bench make-model`.")
@click.option("--tokens", default=24, show_default=True, help="Length of the answers.")
@click.option(
    "--models",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".models"),
    show_default=True,
    help="Where the model is made and kept.",
)
def main(size: str, tokens: int, models: Path) -> None:
    """Make a model, prepare it, serve it through vLLM, ask it; sllm beside the stock loader."""
    console = Console()
    models.mkdir(parents=True, exist_ok=True)
    model = make(models.resolve(), size, console)
    console.print("\nA first start, not measured: it pays for cold libraries and caches.")
    start(model, "sllm", tokens, console)
    results = {
        name: start(model, load_format, tokens, console) for name, load_format in CONTENDERS.items()
    }
    console.print()
    console.print(table(results))
    console.print(
        "`sllm bench load DIR` measures loaders side by side, many rounds, cold and warm."
    )


if __name__ == "__main__":
    main()
