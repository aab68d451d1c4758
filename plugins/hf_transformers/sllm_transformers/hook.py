"""Wraps transformers' one function that reads weights, now or when it is imported.

It may be imported at interpreter start, so it imports little itself.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

MODULE = "transformers.modeling_utils"
METHOD = "_load_pretrained_model"

_lock = threading.RLock()


class _AfterImport:
    """Lets the usual finders find `MODULE` and patches it when it has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                _call_after(spec, _patch_quietly)
                return spec
        return None


def _call_after(spec: ModuleSpec, done: Callable[[ModuleType], None]) -> None:
    """Have `done` called with the module once the spec's loader has executed it."""
    loader = spec.loader
    if loader is None:
        return
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        done(module)

    # On the instance: everything else about the loader (source, resources) stays what it is.
    loader.exec_module = exec_module  # type: ignore[method-assign]


_finder = _AfterImport()


def install() -> None:
    """Patch transformers, or arrange for it to be patched when it is imported. Idempotent."""
    with _lock:
        if _finder not in sys.meta_path:
            sys.meta_path.insert(0, _finder)
    module = sys.modules.get(MODULE)
    if module is None:
        return
    if not hasattr(module, "PreTrainedModel"):
        # Another thread is in the middle of importing it: this waits for that to finish.
        module = __import__(MODULE, fromlist=["PreTrainedModel"])
    patch(module)


def uninstall() -> None:
    """Put transformers' own function back. Idempotent."""
    with _lock:
        if _finder in sys.meta_path:
            sys.meta_path.remove(_finder)
        cls = getattr(sys.modules.get(MODULE), "PreTrainedModel", None)
        current = None if cls is None else cls.__dict__.get(METHOD)
        # When somebody else has wrapped ours meanwhile it stays, and passes every call on.
        original = _original_of(current)
        if original is not None:
            setattr(cls, METHOD, original)


def patch(module: ModuleType) -> None:
    """Wrap the method of a fully imported `MODULE`. Leaves alone what it does not recognise."""
    from sllm_transformers.takeover import UnknownSignatureError, logger, wrap

    with _lock:
        cls = getattr(module, "PreTrainedModel", None)
        current = None if cls is None else cls.__dict__.get(METHOD)
        if _original_of(current) is not None:
            return
        if not isinstance(current, staticmethod):
            logger.debug("this transformers has no PreTrainedModel.%s: stock loading", METHOD)
            return
        try:
            ours = staticmethod(wrap(current.__func__))
        except UnknownSignatureError as error:
            logger.debug("%s: stock loading", error)
            return
        ours.__func__.__sllm_original__ = current  # type: ignore[attr-defined]
        setattr(cls, METHOD, ours)


def _patch_quietly(module: ModuleType) -> None:
    """Patch and get ready, while transformers is being imported: whatever fails, it must not."""
    try:
        patch(module)
        # Imports that the first load would otherwise pay for.
        from sllm.plugins import manager

        manager()
    except Exception:
        import logging

        logging.getLogger("sllm_transformers").exception("not enabled: stock loading")


def _original_of(method: Any) -> Any:
    """The staticmethod that `method` wraps if it is our wrapper, else None."""
    return getattr(getattr(method, "__func__", None), "__sllm_original__", None)
