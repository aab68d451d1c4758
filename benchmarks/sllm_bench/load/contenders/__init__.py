"""Who takes part, by name; others by `module:Class`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from sllm.errors import OptionError
from sllm_bench.load.contenders.base import Contender

_HERE = __name__

BUILT_IN = {
    "raw": f"{_HERE}.raw:Raw",
    "sllm": f"{_HERE}.ours:Ours",
    "safetensors": f"{_HERE}.safetensors_:Safetensors",
    "fastsafetensors": f"{_HERE}.fastsafetensors_:FastSafetensors",
    "runai": f"{_HERE}.runai:RunAI",
    "tensorizer": f"{_HERE}.tensorizer_:Tensorizer",
}


def resolve(names: Sequence[str]) -> list[str]:
    """`module:Class` for each name, all built-in ones when there are none.

    Raises:
        OptionError: a name is neither built in nor of that form.
    """
    specs = []
    for name in names or list(BUILT_IN):
        spec = name if ":" in name else BUILT_IN.get(name)
        if spec is None:
            raise OptionError(
                f"no contender called {name!r}",
                hint=f"use one of {', '.join(BUILT_IN)}, or module:Class of your own",
            )
        specs.append(spec)
    return specs


def contender_class(spec: str) -> type[Contender]:
    """The class that `module:Class` names.

    Raises:
        OptionError: it cannot be imported or is no contender.
    """
    module, _, name = spec.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise OptionError(
            f"contender {spec!r} cannot be imported: {error}",
            hint="write it as module:Class, importable from here",
        ) from error
    if not (isinstance(found, type) and issubclass(found, Contender)):
        raise OptionError(
            f"{spec!r} is not a contender",
            hint="derive it from sllm_bench.load.contenders.base.Contender",
        )
    return found
