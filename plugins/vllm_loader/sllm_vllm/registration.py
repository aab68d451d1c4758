"""Adds the load format at the moment vLLM's own loaders are imported.

`register_model_loader` wants the class itself, and importing it pulls in every loader vLLM ships:
about a second. The API server and the engine core never need one, only the workers do, and the
three start one after the other. So where the package is not imported yet we wait for its import.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

LOADERS = "vllm.model_executor.model_loader"


def add_load_format(name: str) -> None:
    """Register `name` now if vLLM's loaders are imported, else as soon as they are."""
    if LOADERS in sys.modules:
        _add(name, sys.modules[LOADERS])
    else:
        sys.meta_path.insert(0, _OnImport(name))


def _add(name: str, loaders: ModuleType) -> None:
    from sllm_vllm.loader import SllmModelLoader

    loaders.register_model_loader(name)(SllmModelLoader)


class _OnImport(MetaPathFinder):
    """Finds nothing itself: lets the next finder answer and registers once the module has run."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != LOADERS:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_then_register(module: ModuleType) -> None:
            run(module)
            _add(self.name, module)

        spec.loader.exec_module = run_then_register  # type: ignore[method-assign]
        return spec
