"""Kinds of command-line arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class Model(click.ParamType["Path"]):
    """A model as people name it, a path or a URI of any source tier; becomes its local path."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        from sllm.loader.resolve import resolve

        return value if isinstance(value, Path) else resolve(str(value))[0]


MODEL = Model()
