"""`sllm hooks`: every hook and who implements it."""

from __future__ import annotations

import json
from typing import Any

import click


def describe() -> list[dict[str, Any]]:
    """Each hook with its one-line description and the plugins that implement it."""
    from sllm import hookspecs
    from sllm.plugins import manager

    plugins = manager()
    rows = []
    for name in sorted(n for n in vars(hookspecs) if n.startswith("sllm_")):
        caller = getattr(plugins.hook, name)
        rows.append(
            {
                "hook": name,
                "about": (getattr(hookspecs, name).__doc__ or "").strip(),
                "plugins": [impl.plugin_name for impl in caller.get_hookimpls()],
            }
        )
    return rows


@click.command("hooks")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List every hook and the plugins that implement it."""
    rows = describe()
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("hook", "what it is for", "implemented by")
    for row in rows:
        table.add_row(row["hook"], row["about"], ", ".join(row["plugins"]) or "-")
    Console().print(table)
