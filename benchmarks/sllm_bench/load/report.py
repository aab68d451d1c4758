"""The same result as JSON, as a table for a terminal and as Markdown for a page."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from sllm_bench.load import machine
from sllm_bench.load.model import ModelFiles
from sllm_bench.load.results import SCHEMA, mode_as_dict
from sllm_bench.load.suite import Outcome, Settings

if TYPE_CHECKING:
    from rich.console import Console

_WORTH_TELLING = 0.01
"""Seconds of allocation below which the table does not mention it."""

COLUMNS = (
    "loader",
    "GB/s median [min..max]",
    "load s",
    "touch s",
    "x raw",
    "x safetensors",
    "note",
)


def as_dict(
    model: ModelFiles, settings: Settings, outcome: Outcome, here: dict[str, Any]
) -> dict[str, Any]:
    """Everything, in plain types; `here` is `machine.describe` from before the measurement."""
    from sllm import __version__, _native

    return {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "model": {
            "name": model.directory.name,
            "files": len(model.files),
            "nbytes": model.nbytes,
        },
        "settings": {
            "contenders": [spec.rpartition(":")[2] for spec in settings.contenders],
            "rounds": settings.rounds,
            "methods": list(settings.methods),
            "device": settings.device,
            "drop_caches": settings.drop_caches,
            "seed": settings.seed,
        },
        "machine": {**here, "load_average": [here["load_average"], machine.load_average()]},
        "versions": {"sllm": __version__, **outcome.versions},
        "native": dict(_native.build_info()),
        "first_touch": {
            name: {"nbytes": nbytes, "seconds": seconds}
            for name, (nbytes, seconds) in outcome.first_touch.items()
        },
        "skipped": dict(outcome.skipped),
        "broken": dict(outcome.broken),
        "modes": {mode: mode_as_dict(rows, model.nbytes) for mode, rows in outcome.rows.items()},
    }


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One row as text, in the order of `COLUMNS`."""
    if row["status"] != "ok":
        first_line = str(row["message"]).partition("\n")[0]
        return (row["label"], row["status"].upper(), "", "", "", "", first_line)
    gbps = row["gbps"]
    return (
        row["label"],
        f"{gbps['median']:.2f} [{gbps['min']:.2f}..{gbps['max']:.2f}]",
        f"{row['load_seconds']['median']:.3f}",
        f"{row['touch_seconds']['median']:.3f}",
        _ratio(row["of_limit"]),
        _ratio(row["of_safetensors"]),
        _note(row),
    )


def ordered(mode: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Rows, the fastest first, those without figures last."""
    return sorted(
        mode["rows"],
        key=lambda row: row["seconds"]["median"] if row["status"] == "ok" else float("inf"),
    )


def heading(result: Mapping[str, Any]) -> Iterator[str]:
    """What was measured where, as lines."""
    model, here = result["model"], result["machine"]
    storage = here["storage"]
    device = " ".join(
        str(storage[key]) for key in ("device", "model", "backing_file") if key in storage
    )
    yield (
        f"{model['nbytes'] / 1e9:.2f} GB in {model['files']} file(s), "
        f"{result['settings']['rounds']} rounds, load + touch of every page"
    )
    yield (
        f"{here['processor']}, {here['cores']} cores, {here['memory_bytes'] / 2**30:.0f} GiB, "
        f"Linux {here['kernel']}, {storage['file_system']} on {device or 'no block device'}"
    )
    before, after = here["load_average"]
    if before > here["cores"] / 2:
        yield (
            f"others kept this machine busy (load average {before:.1f} before, {after:.1f} after, "
            f"{here['cores']} cores): take the figures as proportions"
        )
    yield ", ".join(f"{name} {version}" for name, version in sorted(result["versions"].items()))
    for name, touched in result["first_touch"].items():
        if touched["seconds"] > 0:
            yield (
                f"first touch of fresh memory ({name}, before timing): "
                f"{touched['nbytes'] / 1e9 / touched['seconds']:.2f} GB/s"
            )
    for name, reason in result["skipped"].items():
        yield f"left out: {name} ({reason})"
    for name, reason in result["broken"].items():
        yield f"FAILED to start: {name} ({reason.partition(chr(10))[0]})"


def print_table(result: Mapping[str, Any], console: Console) -> None:
    """To a terminal."""
    from rich.markup import escape
    from rich.table import Table

    for line in heading(result):
        console.print(escape(line), highlight=False)
    for name, mode in result["modes"].items():
        table = Table(title=name, title_justify="left")
        for column in COLUMNS:
            table.add_column(column, justify="left" if column in ("loader", "note") else "right")
        for row in ordered(mode):
            style = "bold red" if row["status"] != "ok" else "dim" if row["limit"] else ""
            if row["contender"] == "sllm" and row["status"] == "ok":
                style = "bold"
            table.add_row(*(escape(cell) for cell in cells(row)), style=style)
        console.print(table)


def as_markdown(result: Mapping[str, Any]) -> str:
    """For a page."""
    lines = [f"- {line}" for line in heading(result)]
    lines.append(f"- measured {result['created']}")
    for name, mode in result["modes"].items():
        lines += ["", f"### {name}", "", "| " + " | ".join(COLUMNS) + " |"]
        lines.append("|" + "---|" * len(COLUMNS))
        for row in ordered(mode):
            lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells(row)) + " |")
    return "\n".join(lines) + "\n"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _note(row: Mapping[str, Any]) -> str:
    details = [sample["details"] for sample in row["samples"]]
    if row["limit"]:
        return str(details[-1].get("reason", ""))
    if row["contender"] != "sllm" or row["variant"] not in ("auto", "fresh"):
        return ""
    chosen = sorted({each["method"] for each in details if each.get("method")})
    note = f"chose {', '.join(chosen)}" if chosen else ""
    allocating = [each.get("stages", {}).get("allocate", 0.0) for each in details]
    median = statistics.median(allocating)
    return note + (f"; allocating: {median:.2f} s" if median >= _WORTH_TELLING else "")
