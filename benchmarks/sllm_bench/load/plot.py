"""A picture of a result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sllm.errors import OptionError
from sllm_bench.load.report import ordered

_COLOURS = {"sllm": "#0b6e4f", "raw": "#9aa0a6"}
_OTHERS = "#4c78a8"


def check() -> None:
    """Fail before the measurement rather than after it.

    Raises:
        OptionError: matplotlib is missing.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise OptionError(
            "--plot needs matplotlib", hint="pip install matplotlib, or leave --plot out"
        ) from None


def save(result: Mapping[str, Any], path: Path) -> None:
    """One panel a mode: bars are medians, whiskers the slowest and the fastest round."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    modes = result["modes"]
    tallest = max(len(mode["rows"]) for mode in modes.values())
    figure = Figure(figsize=(7.5 * len(modes), 1.6 + 0.36 * tallest), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(modes), squeeze=False)[0]
    for axes, (name, mode) in zip(panels, modes.items(), strict=True):
        _panel(axes, name, mode)
    model = result["model"]
    storage = result["machine"]["storage"]
    figure.suptitle(
        f"{model['nbytes'] / 1e9:.1f} GB, {storage['file_system']} on "
        f"{storage.get('device', '?')}, {result['settings']['rounds']} rounds, load + touch",
        fontsize=10,
    )
    figure.savefig(path, dpi=150)


def _panel(axes: Any, name: str, mode: Mapping[str, Any]) -> None:
    rows = [row for row in ordered(mode) if row["status"] == "ok"]
    medians = [row["gbps"]["median"] for row in rows]
    errors = [
        [row["gbps"]["median"] - row["gbps"]["min"] for row in rows],
        [row["gbps"]["max"] - row["gbps"]["median"] for row in rows],
    ]
    axes.barh(
        [row["label"] for row in rows],
        medians,
        xerr=errors,
        color=[_COLOURS.get(row["contender"], _OTHERS) for row in rows],
        error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#333333"},
    )
    limit = next((row for row in rows if row["label"] == mode["limit"]), None)
    if limit is not None:
        axes.axvline(limit["gbps"]["median"], color="#c0392b", linewidth=1, linestyle="--")
    for place, row in enumerate(rows):
        axes.text(
            row["gbps"]["max"], place, f" {row['gbps']['median']:.2f}", va="center", fontsize=8
        )
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(f"{name} (dashed: the raw limit)", fontsize=10)
    axes.set_xlabel("GB/s")
    axes.spines[["top", "right"]].set_visible(False)
